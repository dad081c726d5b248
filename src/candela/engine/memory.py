"""How much memory a run took, and what it means to run out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from candela.checkpoints.exhausted import ran_out, what_ran_out
from candela.errors import OutOfMemory


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """On CUDA the allocator's peak since `reset_peak`; elsewhere the process's resident peak since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))")


@contextmanager
def mapped(device: torch.device) -> Iterator[None]:
    """Raises torch's several ways to run out of memory as `OutOfMemory`."""
    try:
        yield
    except OutOfMemory:
        raise  # told already, by a stage within a stage
    except Exception as error:
        if not ran_out(error):
            raise
        detail = _detail(str(what_ran_out(error)))  # no name for the cause: its frames would keep what they hold
        raise OutOfMemory(
            f"not enough memory on {device}: {detail}. Ask for a smaller size or fewer pictures at once, "
            "close what else uses the memory, or take a smaller model"
        ) from error


def _detail(text: str) -> str:
    if tried := TRIED.search(text):
        amount = tried[1]
        if amount.endswith("bytes"):
            amount = f"{int(amount.removesuffix('bytes')) / 1e6:.1f} MB"
        rest = text[tried.end() :].lstrip(". ").splitlines()
        more = f" ({rest[0][:160].rstrip('. ')})" if rest and "GPU" in rest[0] else ""
        return f"{amount} more could not be had{more}"
    return text.splitlines()[0][:200].rstrip(". ") if text else "an allocation failed"
