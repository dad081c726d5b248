"""Which way down there is when memory runs out. Policy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from candela.engine.tiling import TILE


class Placement(Enum):
    """Where transformer and text encoder are while they are not needed. The VAE, which is small, always stays."""

    RESIDENT = "resident"  # where they are needed
    RELEASED = "released"  # away: the two take turns
    STREAMED = "streamed"  # away, and when needed there one block at a time


ORDER = list(Placement)


@dataclass(frozen=True)
class Rung:
    """`tiled`: pictures larger than a tile are decoded in overlapping pieces. `kept`: so many of the transformer's
    blocks stay through all steps while the others are streamed."""

    placement: Placement = Placement.RESIDENT
    tiled: bool = False
    kept: int = 0

    def __str__(self) -> str:
        kept = f" but for {self.kept} blocks" if self.kept else ""
        return f"{self.placement.value}{kept}{', tiled decoding' if self.tiled else ''}"


def below(rung: Rung, stage: str, pixels: int = 0) -> Rung | None:
    """The next rung for `stage` (load, encode, denoise, decode), one at a time; None from the last one.
    `pixels` are at work: no more than a tile has, and tiles would not help."""
    if stage == "decode" and not rung.tiled and pixels > TILE**2:
        return replace(rung, tiled=True)
    if rung.kept:  # while prompts are encoded, nothing of the transformer is there
        return None if stage == "encode" else replace(rung, kept=0)
    number = ORDER.index(rung.placement) + 1
    return replace(rung, placement=ORDER[number]) if number < len(ORDER) else None


def costs(before: Rung, after: Rung, sizes: dict[str, int]) -> str:
    """What `after` costs beside `before`, in words; `sizes` in bytes by component."""
    if after.tiled != before.tiled:
        return (
            "pictures larger than 512x512 are decoded in overlapping tiles, which takes up to 1.8 times as long and "
            "leaves faint differences"
        )
    if before.kept:
        return "all of the transformer comes block by block, in every step; the picture is the same"
    named = [f"{name.replace('_', ' ')} ({size / 1e9:.2g} GB)" for name, size in sizes.items()]
    moved = " and ".join(named or ["text encoder", "transformer"])
    if after.placement is Placement.RELEASED:
        return f"{moved} take turns in memory, so each new prompt moves both; the picture is the same"
    return f"{moved} come block by block, the transformer in every step; the picture is the same"
