"""The memory that a process keeps after it was freed: given back, and kept small where the process is ours."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

MMAP_THRESHOLD = -3  # of mallopt(3)
SMALL, LARGE = 1 << 18, 1 << 23  # bytes; left to itself glibc goes up to 1 << 25

_ours = False


def own_process() -> None:
    """Says that nobody else computes in this process, as in the shell's commands: `return_at_once` may set malloc. A
    host program, ComfyUI or a notebook, keeps its own settings."""
    global _ours
    _ours = True


def trim() -> None:
    """Gives freed memory back: glibc and torch's allocator for CUDA keep it otherwise, out of others' reach."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (libc := _glibc()):
        libc.malloc_trim(0)


def return_at_once(beyond: int = SMALL) -> None:
    """From now on, in a process of our own, every block of `beyond` bytes goes back to the system when it is freed, and
    leaves no hole in the heap. glibc raises its own limit with what is freed: then weights that have gone leave holes
    which nothing fits, a fifth of what they took. Each such block costs page faults, so what computes all the time is
    left to the heap."""
    if _ours and sys.platform == "linux" and (libc := _glibc()):
        libc.mallopt(MMAP_THRESHOLD, beyond)


def _glibc() -> Any | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
