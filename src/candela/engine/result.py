"""What a finished request gives back."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from candela.record import Record, png_bytes, save_png

if TYPE_CHECKING:
    from PIL import Image

    from candela.engine.request import Request

SHOWN = 16  # pictures in a notebook's cell; more make it slow to open


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

    def _repr_html_(self) -> str:
        """What a notebook shows: the pictures with their seeds. They are the files that `save` writes, so that one
        saved from the page carries its record too."""
        figures = [
            f'<figure style="margin: 0; max-width: 512px">'
            f'<img style="max-width: 100%" width="{image.width}" height="{image.height}" '
            f'src="data:image/png;base64,{b64encode(png_bytes(image, record)).decode()}" alt="{escape(record.prompt)}">'
            f"<figcaption>seed {seed}: {escape(_shortened(record.prompt))}</figcaption></figure>"
            for image, record, seed in zip(self.images[:SHOWN], self.records, self.seeds)
        ]
        more = len(self.images) - SHOWN
        rest = f"<p>and {more} more: show them with result.images[{SHOWN}:]</p>" if more > 0 else ""
        return f'<div style="display: flex; flex-wrap: wrap; gap: 1em">{"".join(figures)}</div>{rest}'


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else f"{prompt[:80]}..."
