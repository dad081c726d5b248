"""A picture's record: everything needed to make it again, carried inside its PNG.

Two text chunks: `candela`, JSON for machines, and `parameters`, the line format that image
viewers and galleries have understood since AUTOMATIC1111's web UI.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candela.errors import OutputError

if TYPE_CHECKING:
    from PIL import Image

KEY = "candela"


@dataclass(frozen=True)
class Start:
    """The picture an image-to-image run began from: its file, where known, and the sha256 of its RGB pixels."""

    path: str | None
    sha256: str


@dataclass(frozen=True)
class Lora:
    """A LoRA that was on: its file, how strongly, and the sha256 of the file."""

    path: str
    strength: float
    sha256: str


@dataclass(frozen=True)
class Record:
    """One picture's settings, all explicit. `cfg` is ComfyUI's number for the same guidance; `mode` is exact, or fast
    with the numbers that were computed with: "fast int8", "fast fp8".

    `remake` is False when tensors went in that a file name cannot stand for (latents, a mask)."""

    model: str
    family: str
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance: float
    cfg: float
    seed: int
    strength: float
    dtype: str
    device: str
    mode: str = "exact"
    start: Start | None = None
    loras: tuple[Lora, ...] = ()
    remake: bool = True
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """
        Raises:
            ValueError: not a record.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        known = {f.name for f in fields(cls)}
        if missing := {"model", "prompt", "seed"} - values.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        if not all(isinstance(values[name], str) for name in ("model", "prompt")):
            raise ValueError("model and prompt must be text")
        if start := values.get("start"):
            values["start"] = Start(start.get("path"), start["sha256"])
        try:
            loras = values.get("loras") or ()
            values["loras"] = tuple(Lora(str(one["path"]), float(one["strength"]), str(one["sha256"])) for one in loras)
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise ValueError(str(error)) from error

    def parameters(self) -> str:
        """The line format: prompt, negative prompt, then settings; CFG scale is ComfyUI's number."""
        lines = [self.prompt]
        if self.negative_prompt is not None:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        settings = {
            "Steps": self.steps,
            "Sampler": "Euler",
            "CFG scale": f"{self.cfg:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            **({"Mode": self.mode} if self.mode != "exact" else {}),
            **({"Denoising strength": f"{self.strength:g}"} if self.start else {}),
            **(
                {"LoRA": " + ".join(f"{Path(one.path).stem} {one.strength:g}" for one in self.loras)}
                if self.loras
                else {}
            ),
            "Version": f"candela {self.versions.get('candela', '')}".strip(),
        }
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
        return "\n".join(lines)


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of the RGB pixels: equal for equal pictures, whatever file they lie in."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def read_record(path: str | Path) -> Record:
    """The record inside a PNG that Candela wrote.

    Raises:
        OutputError: no such file, not a picture, or no record in it.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # text chunks may follow the pixels
            text = image.info.get(KEY)
    except FileNotFoundError as error:
        raise OutputError(f"there is no file {path}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OutputError(f"{path} cannot be read as a picture ({error})") from error
    if text is None:
        raise OutputError(
            f"{path} carries no Candela record: it was made elsewhere, or saved again by a program that drops it"
        )
    try:
        return Record.from_json(text)
    except (ValueError, KeyError, AttributeError) as error:
        raise OutputError(f"{path}: its Candela record is damaged ({error})") from error


def file_name(record: Record) -> str:
    """Prompt and seed, safe on every file system: 'a-red-star-7'."""
    words = re.sub(r"[^\w]+", "-", record.prompt.lower()).strip("-_")[:60].rstrip("-")
    return f"{words or 'picture'}-{record.seed}"


def png_bytes(image: Image.Image, record: Record) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(KEY, record.to_json())
    info.add_itxt("parameters", record.parameters())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, record: Record, folder: Path, name: str | None = None) -> Path:
    """Writes `image` with its record into `folder` (created if need be), under a name not yet taken.

    Raises:
        OutputError: the folder cannot be created or written; no half file is left.
    """
    stem, data = name or file_name(record), png_bytes(image, record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_new(folder, stem, data)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}. Choose another folder") from error


def _write_new(folder: Path, stem: str, data: bytes) -> Path:
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            file = path.open("xb")
        except FileExistsError:
            number += 1
            continue
        try:
            with file:
                file.write(data)
        except BaseException:
            os.unlink(path)
            raise
        return path


def versions() -> dict[str, Any]:
    import diffusers
    import torch
    import transformers

    import candela

    return {
        "candela": candela.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
