"""What machines can do: memory, arithmetic, and how fast weights come to them."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from candela.engine.memory import synchronize

PROCESS = 1_000_000_000  # bytes of Python with torch, diffusers and transformers; 0.55 to 0.9 GB measured on Linux
# What kernels reach of a card's rates: matrix products 790 of 989 TFLOP/s on an H200 (0.8) and about 0.9 of the lower
# rates of consumer cards, copies of large tensors about 0.8 of the bandwidth. Held against published seconds per step
# of Z-Image in tests/engine/test_plan.py.
ARITHMETIC, BANDWIDTH = 0.85, 0.8
READING = 1.0e9  # bytes a second that a CPU engine reads and converts from files in the system's cache


@dataclass(frozen=True)
class Machine:
    """One place to compute.

    Attributes:
        device: cpu or cuda.
        memory, ram: bytes, all there is; on a CPU the same.
        flops: per second, dense, in the precision that is planned for.
        bandwidth: bytes a second between arithmetic and memory.
        link: bytes a second at which weights come from where they are put away; `link_measured`, or assumed.
    """

    name: str
    device: str
    memory: int
    ram: int
    flops: float
    bandwidth: float
    link: float
    link_measured: bool = False


def _card(name: str, gib: int, teraflops: float, gigabytes: float, link: float = 24) -> Machine:
    return Machine(
        name, "cuda", gib * 2**30, 32 * 2**30, teraflops * 1e12 * ARITHMETIC, gigabytes * 1e9 * BANDWIDTH, link * 1e9
    )


# Dense bfloat16 with float32 accumulation (TFLOP/s) and memory bandwidth (GB/s): NVIDIA's whitepapers "Ampere GA102",
# "Ada GPU Architecture" (appendix A) and "H100 Tensor Core GPU"; H200: its data sheet. The link: pinned copies over
# PCIe 4.0 x16 reach about 24 GB/s, over x8 half of it, over 5.0 x16 50.
CARDS = [
    _card("RTX 4060 8 GB", 8, 30.2, 272, 12),
    _card("RTX 3060 12 GB", 12, 25.5, 360),
    _card("RTX 4070 Ti 12 GB", 12, 80.2, 504),
    _card("RTX 4060 Ti 16 GB", 16, 44.1, 288, 12),
    _card("RTX 4080 16 GB", 16, 97.5, 717),
    _card("RTX 3090 24 GB", 24, 71, 936),
    _card("RTX 3090 Ti 24 GB", 24, 80, 1008),
    _card("RTX 4090 24 GB", 24, 165.2, 1008),
    _card("H100 80 GB", 80, 989, 3350, 50),
    _card("H200 141 GB", 131, 989, 4800, 50),
]
TYPICAL = {8: "RTX 4060 8 GB", 12: "RTX 3060 12 GB", 16: "RTX 4060 Ti 16 GB", 24: "RTX 3090 24 GB"}


def card(name: str) -> Machine:
    return next(known for known in CARDS if known.name == name)


def of_memory(vram: int) -> Machine:
    """A card of that many bytes: as fast as the usual one of its size, or of the next smaller."""
    size = max((gib for gib in TYPICAL if gib * 2**30 <= vram), default=8)
    usual = card(TYPICAL[size])
    return usual if usual.memory == vram else replace(usual, name=f"a card as fast as an {usual.name}", memory=vram)


def this_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measures its rates for a moment."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        _, total = torch.cuda.mem_get_info(device)
        return Machine(properties.name, "cuda", total, ram(), *rates(device, dtype), link(device), link_measured=True)
    flops, bandwidth = rates(torch.device("cpu"), dtype)
    name = f"this CPU ({torch.get_num_threads()} threads)"
    return Machine(name, "cpu", ram(), ram(), flops, bandwidth, READING)


@functools.cache
def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Floating point operations and bytes a second, from matrices as large as a transformer's and a long copy; the
    best of a few, for about half a second."""
    gpu = device.type == "cuda"
    side = 4096 if gpu else 1024
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    flops = 2 * side**3 / _quickest(lambda: a @ b, device)
    large = torch.empty(2**27 if gpu else 2**24, device=device)
    other = torch.empty_like(large)
    moved = 2 * large.numel() * 4 / _quickest(lambda: other.copy_(large), device)
    return flops * (0.95 if gpu else 0.85), moved * BANDWIDTH


@functools.cache
def link(device: torch.device) -> float:
    """Bytes a second of copies to a GPU from main memory, locked where that may be, as placements make them."""
    try:
        away = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # the driver has a limit, or the user
        away = torch.empty(2**26, dtype=torch.uint8)
    here = torch.empty(2**26, dtype=torch.uint8, device=device)
    return len(away) / _quickest(lambda: here.copy_(away, non_blocking=True), device)


def _quickest(work: Callable[[], object], device: torch.device) -> float:
    best, until = float("inf"), time.perf_counter() + 0.25
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def ram() -> int:
    """Bytes of main memory that this process may use at most: the machine's, or its container's."""
    import psutil

    return min(psutil.virtual_memory().total, _limit("memory.max"))


def free(device: torch.device) -> int:
    """Bytes that are free on `device` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    taken = _limit("memory.current", 0) - _reclaimable()
    return min(psutil.virtual_memory().available, max(_limit("memory.max") - taken, 0))


def _reclaimable() -> int:
    """Bytes of files that the container's memory counts, and would give up: a model that was just downloaded, say."""
    try:
        text = Path(os.sep, "sys", "fs", "cgroup", "memory.stat").read_text()
        return int(text.split("inactive_file ", 1)[1].split()[0])
    except (OSError, IndexError, ValueError):
        return 0


def _limit(name: str, without: int = 2**63) -> int:
    """From the container's control group (version 2), where there is one."""
    try:
        text = Path(os.sep, "sys", "fs", "cgroup", name).read_text().strip()
        return int(text)
    except (OSError, ValueError):
        return without
