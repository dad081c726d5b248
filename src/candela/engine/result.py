"""What a finished request gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from candela.record import Record, save_png

if TYPE_CHECKING:
    from PIL import Image

    from candela.engine.request import Request


@dataclass(frozen=True)
class Seconds:
    """Wall time of each stage. `load` is the engine's, spent once; `total` is encode to decode."""

    load: float
    encode: float
    denoise: float
    decode: float
    total: float


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures, and everything needed to make them again.

    Attributes:
        images: RGB, in the order of the request's prompts, `count` of each.
        seeds: the seed of each picture: alone, it gives the same one.
        seconds: per stage.
        peak_bytes: the most memory in use: of the GPU during this request, or on a CPU of the process so far.
        request: as it was carried out, with every default filled in.
        records: per picture, what `save` writes into its PNG.
    """

    images: list[Image.Image]
    seeds: list[int]
    seconds: Seconds
    peak_bytes: int
    request: Request
    records: list[Record]

    def save(self, folder: str | Path) -> list[Path]:
        """Writes each picture as a PNG that carries its record; existing files are never overwritten.

        Raises:
            OutputError: the folder cannot be created or written.
        """
        return [save_png(image, record, Path(folder)) for image, record in zip(self.images, self.records)]
