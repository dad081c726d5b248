"""Sides in turn: time, memory, and how far their pictures are apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candela.engine import memory

RESET = Path("/proc/self/clear_refs")  # Linux: 5 written here makes the process's peak begin anew (proc(5))

# run number -> a picture, or a tensor
Side = Callable[[int], Any]


@dataclass(frozen=True)
class Timing:
    """One side of one case.

    Attributes:
        seconds: of each run after the first, which is left out.
        peak_bytes: the most in use during a run: of the GPU's allocator, or of the whole process; None if unknown.
        difference: the largest between its pictures and the reference's, of 255; None for the reference, and where
            there are no pictures.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None = None
    difference: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quarter."""
        first, _, third = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else [self.median] * 3
        return first, third


def alternate(
    sides: Mapping[str, Side], runs: int, device: torch.device, elsewhere: Collection[str] = ()
) -> dict[str, Timing]:
    """Runs every side `runs` times after a warm-up, in turn and each time in the other order, with the same number for
    all: it chooses prompt and noise. The last side is the reference. `elsewhere` names those that work in another
    process, whose memory is not seen."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int] = {}
    differences: dict[str, int] = {}
    reference = list(sides)[-1]
    for run in range(runs + 1):
        results = {}
        for name in list(sides) if run % 2 else list(sides)[::-1]:
            tracked = reset_peak(device)
            memory.synchronize(device)
            began = time.perf_counter()
            results[name] = sides[name](run)
            memory.synchronize(device)
            if run:
                seconds[name].append(time.perf_counter() - began)
            if run and tracked and name not in elsewhere:
                peaks[name] = max(peaks.get(name, 0), peak(device))
        for name, result in results.items():
            if name != reference and (apart := difference(result, results[reference])) is not None:
                differences[name] = max(differences.get(name, 0), apart)
    return {name: Timing(tuple(seconds[name]), peaks.get(name), differences.get(name)) for name in sides}


def difference(one: Any, other: Any) -> int | None:
    """The largest between two pictures, of 255."""
    import numpy as np
    from PIL import Image

    if not isinstance(one, Image.Image) or not isinstance(other, Image.Image):
        return None
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def reset_peak(device: torch.device) -> bool:
    """Begins to watch; -> whether that is possible here."""
    if device.type == "cuda":
        memory.reset_peak(device)
        return True
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def peak(device: torch.device) -> int:
    """Bytes since `reset_peak`."""
    if device.type == "cuda":
        return memory.peak_bytes(device)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 4096, seconds: float = 0.5) -> float:
    """FLOP/s of square matrix products, the best of several: what a roofline is drawn at."""
    side = side if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        memory.synchronize(device)
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        memory.synchronize(device)
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * side**3 / best


def flops(run: Callable[[], Any]) -> int:
    """Of the matrix products, convolutions and attention in `run`, counted while it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
