"""The graphics card, as its driver describes it, and which precision of a model it can hold."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

# Bytes of working memory at 1024x1024 in 16 bits, beside the weights: ComfyUI's own estimates for these architectures
# (supported_models.py: memory_usage_factor 2.8 of Z-Image, 460 bytes per pixel and byte; sd.py: 2178 for the VAE).
PIXELS = 1024 * 1024
WORK = {"transformer": 460 * 2 * PIXELS, "vae": 2178 * 2 * PIXELS}
RESERVED = 800_000_000  # bytes that driver and desktop keep


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


def needed(sizes: Mapping[str, int], managed: bool) -> int:
    """Bytes of the card that a model of these components (name -> bytes) takes: of the hungriest one where ComfyUI
    moves them in and out (`managed`), else of all together."""
    work = {name: size + WORK.get(name, 0) for name, size in sizes.items()}
    return max(work.values()) if managed else sum(sizes.values()) + max(WORK.values())


def pick_precision(offers: Mapping[str, Mapping[str, int]], card: Card | None, managed: bool) -> tuple[str, str]:
    """The most precise of `offers` (precision -> component -> bytes, most precise first) that fits the card, else the
    smallest. -> it, and why in a few words."""
    first, *_, last = [*offers, *offers]
    if len(offers) == 1:
        return first, "the only one there is"
    if card is None:
        return first, "no NVIDIA card found: the most precise"
    room = card.vram_bytes - RESERVED
    for precision, sizes in offers.items():
        need = needed(sizes, managed)
        if need <= room:
            return precision, f"needs {need / 1e9:.1f} of the {card.vram_bytes / 1e9:.1f} GB of {card.name}"
    need = needed(offers[last], managed)
    return last, f"the smallest; it needs {need / 1e9:.1f} GB, and {card.name} has {card.vram_bytes / 1e9:.1f}"
