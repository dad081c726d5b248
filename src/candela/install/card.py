"""The graphics card, as its driver describes it, and which precision of a model it can hold."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from candela.checkpoints.card_memory import NEEDED, RESERVED


@dataclass(frozen=True)
class Card:
    """The first card, which torch takes too. Memory in bytes; `compute` is NVIDIA's compute capability."""

    name: str
    vram_bytes: int
    vram_free: int
    driver: str
    compute: str


def find_card() -> Card | None:
    """Asks nvidia-smi, which comes with the driver; None where it is missing or finds no card."""
    fields = "name,memory.total,memory.free,driver_version,compute_cap"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        name, total, free, driver, compute = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
        return Card(name, int(total) * 2**20, int(free) * 2**20, driver, compute)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def needed(model: str, precision: str, managed: bool) -> int:
    """Bytes of a card that the published `model` takes, as the planner counts them: of the hungriest component where
    ComfyUI moves them in and out (`managed`), else of all together, which is the fastest way."""
    found = NEEDED[model][precision]
    return found.one if managed else found.all


def fits(model: str, precision: str, card: Card, managed: bool) -> bool:
    return needed(model, precision, managed) + RESERVED <= card.vram_bytes


def pick_precision(model: str, offers: Collection[str], card: Card | None, managed: bool) -> tuple[str, str]:
    """The most precise of `offers` (most precise first) that fits the card, else the smallest. -> it, and why in a few
    words."""
    first, *_, last = [*offers, *offers]
    if len(offers) == 1:
        return first, "the only one there is"
    if card is None:
        return first, "no NVIDIA card found: the most precise"
    total = f"{card.vram_bytes / 1e9:.1f}"

    def gigabytes(precision: str) -> str:
        """With what driver and desktop keep."""
        return f"{(needed(model, precision, managed) + RESERVED) / 1e9:.1f}"

    for precision in offers:
        if fits(model, precision, card, managed):
            return precision, f"needs {gigabytes(precision)} of the {total} GB of {card.name}"
    return last, f"the smallest; it needs {gigabytes(last)} GB, and {card.name} has {total}"
