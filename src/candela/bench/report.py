"""Cases as a table, as JSON, and as a chart."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from html import escape
from typing import Any

import torch

from candela.bench.suites import Case
from candela.record import versions

WIDTH, BAR, GAP, LEFT, SCALE = 860, 22, 14, 250, 420  # pixels
COLOURS = {"candela": "#c2410c", "other": "#9ca3af"}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = _processor()
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.system(), "versions": versions()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_json(suite: str, cases: Sequence[Case], device: torch.device) -> dict[str, Any]:
    return {
        "suite": suite,
        "date": datetime.date.today().isoformat(),
        **machine(device),
        "cases": [
            {
                "title": case.title,
                "reference": case.reference,
                "sides": {
                    name: {
                        "median seconds": round(timing.median, 4),
                        "quartiles": [round(value, 4) for value in timing.spread],
                        "runs": len(timing.seconds),
                        "ratio": round(case.ratio(name), 3),
                        "peak MiB": timing.peak_bytes and round(timing.peak_bytes / 2**20),
                        "difference of 255": timing.difference,
                        **({"of matmul rate": round(case.reached[name], 3)} if name in case.reached else {}),
                    }
                    for name, timing in case.timings.items()
                },
            }
            for case in cases
        ],
    }


def rows(case: Case) -> list[tuple[str, ...]]:
    """side, median, quartiles, ratio, peak, difference, fraction of the matrix product rate."""
    found: list[tuple[str, ...]] = []
    for name, timing in case.timings.items():
        low, high = timing.spread
        found.append(
            (
                name,
                f"{timing.median:.4g} s",
                f"{low:.4g} to {high:.4g}",
                f"{case.ratio(name):.3f}",
                "" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.0f} MiB",
                "" if timing.difference is None else f"{timing.difference}/255",
                f"{case.reached[name]:.0%}" if name in case.reached else "",
            )
        )
    return found


def chart(title: str, cases: Sequence[Case]) -> str:
    """An SVG of bars: each side's time as a multiple of the reference's, which is 1."""
    largest = max(case.ratio(side) for case in cases for side in case.timings)
    shapes, y = [], 58
    for case in cases:
        shapes.append(f'<text x="16" y="{y}" font-weight="bold">{escape(case.title)}</text>')
        y += 10
        for side, timing in case.timings.items():
            ratio = case.ratio(side)
            length = max(2.0, SCALE * ratio / max(largest, 1.0))
            colour = COLOURS["candela" if side.startswith("candela") else "other"]
            label = f"{ratio:.2f}  ({timing.median:.3g} s)"
            shapes += [
                f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(side)}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
                f'<text x="{LEFT + length + 8:.1f}" y="{y + 16}">{label}</text>',
            ]
            y += BAR + 4
        y += GAP + 14
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" '
        f'font-size="13"><rect width="{WIDTH}" height="{y}" fill="white"/>'
        f'<text x="16" y="28" font-size="17">{escape(title)}</text>'
    )
    return "\n".join([head, *shapes, "</svg>\n"])
