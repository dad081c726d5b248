"""`candela plan`: what a model would take and where it would be, before any weight is read."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from candela.cli.libraries import import_libraries
from candela.cli.output import plain, print_json
from candela.errors import InvalidRequest

if TYPE_CHECKING:
    from candela.engine.plan import Plan

UNITS = {"": 2**30, "GB": 2**30, "G": 2**30, "GIB": 2**30, "MB": 2**20, "M": 2**20, "MIB": 2**20}


def run(model: str, vram: str | None, ram: str | None, size: str | None, as_json: bool) -> int:
    sides, memory, main = _size(size), _bytes("--vram", vram), _bytes("--ram", ram)

    import_libraries()
    from candela.cli.generate import quiet_libraries
    from candela.engine.planning import plan

    quiet_libraries()
    made = plan(model, vram=memory, ram=main, size=sides)
    if as_json:
        print_json(asdict(made) | {"options": [asdict(option) | {"text": str(option)} for option in made.options]})
    else:
        print(text(made))
    return 0


def text(plan: Plan) -> str:
    """One screen."""
    here = "" if plan.installed else ", not installed: sizes as published"
    guidance = f", guidance {plan.guidance:g}" if plan.guidance else ""
    lines = [
        f"{plain(plan.model)}, {plan.width}x{plan.height}, {plan.steps} steps{guidance}{here}",
        f"on {plain(plan.machine)} with {plan.memory_bytes / 1e9:.1f} GB, of which "
        f"{plan.reserved_bytes / 1e9:.1f} GB are kept for {_others(plan)}",
    ]
    if plan.placement != "resident":
        away = "main memory" if plan.device == "cuda" else "the model's files"
        how = "measured" if plan.link_measured else "assumed, not measured"
        lines.append(f"weights come from {away} at {plan.link / 1e9:.0f} GB/s ({how})")
    lines.append("")
    for one in plan.components:
        lines.append(f"  {one.name:13} {one.bytes / 1e9:6.2f} GB  {plain(one.precision):10} {one.where}")
    lines.append("")
    for stage in plan.stages:
        lines.append(
            f"  {stage.name:13} {stage.peak / 1e9:6.2f} GB  = weights {stage.weights / 1e9:.2f} + work "
            f"{stage.activations / 1e9:.2f}, {stage.seconds:.1f} s"
        )
    kept = f" but for {plan.kept} blocks" if plan.kept else ""
    tiled = ", decoded in tiles" if plan.tiled else ""
    memory = f"main memory {plan.ram_bytes / 1e9:.1f} GB"
    lines += [
        "",
        f"{plan.placement}{kept}{tiled}: peak {plan.peak_bytes / 1e9:.1f} GB, {memory}, "
        f"about {plan.seconds:.1f} s a picture",
    ]
    if not plan.fits:
        lines.append("this does NOT fit, and there is no smaller way: take a smaller size, or another precision")
    lines += [f"  or {option}" for option in plan.options]
    return "\n".join(lines)


def _others(plan: Plan) -> str:
    return "driver and desktop" if plan.device == "cuda" else "Python and its libraries"


def _bytes(option: str, typed: str | None) -> int | None:
    """8GB as cards are sold: 8 x 2^30."""
    if typed is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", typed.strip(), re.IGNORECASE)
    if not match or match[2].upper() not in UNITS or not 0 < float(match[1]) < 1e6:
        raise InvalidRequest(f"{option} {typed[:40]!r} is no size of memory: write 8GB or 512MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _size(typed: str | None) -> tuple[int, int] | None:
    if typed is None:
        return None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", typed.strip().lower())
    if not match:
        raise InvalidRequest(f"--size {typed!r} is no size: write WIDTHxHEIGHT in pixels, 1024x768")
    return int(match[1]), int(match[2])
