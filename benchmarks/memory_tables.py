"""The tables of docs/memory.md and of checkpoints/card_memory.py, made by the planner itself.

python -m benchmarks.memory_tables           # writes them into both
python -m benchmarks.memory_tables --check   # exit code 1 if they differ
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from candela.checkpoints import card_memory
from candela.checkpoints.announced import MODELS as ANNOUNCED
from candela.checkpoints.announced import announced
from candela.checkpoints.card_memory import RESERVED
from candela.checkpoints.published import PUBLICATIONS
from candela.engine.cards import CARDS, Machine, card
from candela.engine.ladder import Placement, Rung
from candela.engine.planning import RUNGS, Measured, measured
from candela.families import family_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- made by benchmarks/memory_tables.py: begin -->", "<!-- end -->"
NEEDED = Path(card_memory.__file__)
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


def needed() -> str:
    """`card_memory.NEEDED`, as Python."""
    lines = ["NEEDED: dict[str, dict[str, Needed]] = {"]
    for model in ANNOUNCED:
        lines.append(f'    "{model}": {{')
        for precision in PUBLICATIONS[model].split:
            known = of(model, precision)
            whole = _peak(known, Rung(Placement.RESIDENT, tiled=True), CARDS[0])
            lines.append(f'        "{precision}": Needed(all={whole:_}, one={known.largest:_}),')
        lines.append("    },")
    return "\n".join([*lines, "}"])


def renewed(text: str) -> str:
    """A document, or card_memory.py, with today's tables."""
    begin, end, made = (
        (BEGIN, END, tables) if BEGIN in text else ("# made by benchmarks/memory_tables.py: begin", "# end", needed)
    )
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{made()}\n{end}", text)


def main() -> None:
    files = (DOCUMENT, NEEDED)
    before = [file.read_text() for file in files]
    after = [renewed(text) for text in before]
    if "--check" in sys.argv:
        sys.exit(before != after)
    for file, text in zip(files, after):
        file.write_text(text)


if __name__ == "__main__":
    main()
