"""Which 8-bit arithmetic a card takes: policy, apart from the arithmetic."""

from __future__ import annotations

import torch

from candela.checkpoints import Checkpoint
from candela.errors import InvalidRequest
from candela.families import Family

EXACT = "exact"
KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# The first compute capability whose tensor cores multiply it: Ampere; Ada, then Hopper and Blackwell.
CAPABILITY = {"int8": (8, 0), "fp8": (8, 9)}


def pick(asked: bool | str, device: torch.device, family: Family, checkpoint: Checkpoint) -> str | None:
    """The kind of 8-bit numbers to compute with, `int8` or `fp8`; None for exact mode.

    True and "auto" take what the transformer's file is quantised to already, else the card's best. A kind that is
    named is computed on the CPU too, slower than exact mode there.

    Raises:
        InvalidRequest: an unknown kind; a model that has no fast mode; a device that has not, or not this one.
    """
    if asked is False:
        return None
    if asked is not True and asked not in ("auto", *KINDS):
        raise InvalidRequest(f"fast mode {asked!r} is unknown: use auto, {' or '.join(KINDS)}")
    if family.whole_pipeline:
        raise InvalidRequest(
            f"fast mode is for Z-Image and the Lumina models; {checkpoint.name} ({family.name}) runs in exact mode only"
        )
    if isinstance(asked, str) and asked in KINDS:
        if device.type != "cpu" and _capability(device) < CAPABILITY[asked]:
            raise InvalidRequest(f"fast mode {asked} {_needs(asked)}, and this is {_name(device)}: {_others(device)}")
        return asked
    possible = [kind for kind, least in CAPABILITY.items() if _capability(device) >= least]
    if not possible:
        raise InvalidRequest(
            f"fast mode {_needs('int8')}, and this is {_name(device)}, where 8 bits would be slower than exact mode: "
            "leave it out"
        )
    stored = stored_kind(checkpoint)
    return stored if stored in possible else possible[-1]


def stored_kind(checkpoint: Checkpoint) -> str | None:
    """The kind that the transformer's file is quantised to, where it is one of ours."""
    found = checkpoint.parts["transformer"].found
    schemes = {found.scheme(name) for name in found.weights} if found else set()
    return next((kind for kind in KINDS if kind in schemes), None)


def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) for whatever is no NVIDIA GPU."""
    if device.type != "cuda" or torch.version.hip:
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def _needs(kind: str) -> str:
    major, minor = CAPABILITY[kind]
    return f"needs an NVIDIA GPU of compute capability {major}.{minor} or more"


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} with {major}.{minor}"


def _others(device: torch.device) -> str:
    return "use int8" if _capability(device) >= CAPABILITY["int8"] else "leave fast mode out"
