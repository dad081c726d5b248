"""Where an engine computes, and in which precision."""

from __future__ import annotations

import torch

from candela.errors import InvalidRequest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRequest(f"no device {name!r} here ({reason}): leave it out, or use cpu") from error
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float32
    if name not in DTYPES:
        raise InvalidRequest(f"dtype {name!r} is unknown: use {', '.join(DTYPES)}")
    return DTYPES[name]
