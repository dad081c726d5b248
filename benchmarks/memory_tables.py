"""The tables of docs/memory.md, made by the planner itself.

python -m benchmarks.memory_tables           # writes them into the document
python -m benchmarks.memory_tables --check   # exit code 1 if they differ
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from candela.checkpoints.announced import announced
from candela.engine.cards import CARDS, RESERVED, Machine, card
from candela.engine.ladder import Rung
from candela.engine.planning import RUNGS, Measured, measured
from candela.families import family_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- made by benchmarks/memory_tables.py: begin -->", "<!-- end -->"
MODELS = {"z-image-turbo": ("bf16", "int8"), "lumina-image-2": ("bf16",)}
SIZED = {8: "RTX 4060 8 GB", 12: "RTX 3060 12 GB", 16: "RTX 4060 Ti 16 GB", 24: "RTX 3090 24 GB"}


def tables() -> str:
    return "\n".join(line for model in MODELS for line in _model(model))


@functools.cache
def of(model: str, precision: str) -> Measured:
    checkpoint = announced(model)
    return measured(checkpoint, family_of(checkpoint), torch.bfloat16, "cuda", precision=precision)


def _model(model: str) -> Iterator[str]:
    known = {precision: of(model, precision) for precision in MODELS[model]}
    first = known["bf16"].defaults
    guided = f", guidance {first.guidance:g}" if first.guidance else ""
    yield f"### {model}, {first.width}x{first.height}, {first.steps} steps{guided}\n"
    yield "| weights | transformer | text encoder | VAE | work: encode | denoise | decode | decode in tiles |"
    yield "|---|---|---|---|---|---|---|---|"
    for precision, one in known.items():
        weights = [one.weights[name].total for name in ("transformer", "text_encoder", "vae")]
        works = [getattr(one.costs, stage).peak_bytes for stage in ("encode", "step", "decode", "tiled")]
        yield f"| {precision} | " + " | ".join(f"{value / 1e9:.2f}" for value in (*weights, *works)) + " |"
    yield "\nPeak of each placement in GB, weights and work, without the reserve:\n"
    yield "| weights | " + " | ".join(map(str, RUNGS)) + " |"
    yield "|---" * (len(RUNGS) + 1) + "|"
    for precision, one in known.items():
        yield f"| {precision} | " + " | ".join(f"{_peak(one, rung, CARDS[0]) / 1e9:.2f}" for rung in RUNGS) + " |"
    stages = "encode | denoise | decode"
    yield f"\n| card | weights | placement | {stages} | peak + reserve | of | main memory | s a picture |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name in SIZED.values():
        for precision, one in known.items():
            yield _row(card(name), precision, one)
    yield "\nThe same on other cards, seconds a picture:\n"
    yield "| card | " + " | ".join(known) + " |"
    yield "|---" * (len(known) + 1) + "|"
    for other in CARDS:
        if other.name not in SIZED.values():
            rungs = ((one, one.best(other)[0]) for one in known.values())
            cells = (f"{one.seconds(rung, other):.1f} ({rung})" for one, rung in rungs)
            yield f"| {other.name} | " + " | ".join(cells) + " |"
    yield ""


def _row(machine: Machine, precision: str, known: Measured) -> str:
    rung, fits = known.best(machine)
    sums = [f"{s.weights / 1e9:.2f} + {s.activations / 1e9:.2f}" for s in known.stages(rung, machine)]
    cells = [
        machine.name, precision, f"{rung}{'' if fits else ' (does not fit)'}", *sums,
        f"{(_peak(known, rung, machine) + RESERVED) / 1e9:.1f}", f"{machine.memory / 1e9:.1f}",
        f"{known.ram(rung, machine) / 1e9:.1f}", f"{known.seconds(rung, machine):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _peak(known: Measured, rung: Rung, machine: Machine) -> int:
    return max(stage.peak for stage in known.stages(rung, machine))


def renewed(document: str) -> str:
    """`document` with today's tables."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{tables()}\n{END}", document)


def main() -> None:
    before = DOCUMENT.read_text()
    after = renewed(before)
    if "--check" in sys.argv:
        sys.exit(before != after)
    DOCUMENT.write_text(after)


if __name__ == "__main__":
    main()
