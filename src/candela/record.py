"""A picture's record: everything needed to make it again, carried inside its PNG.

Two text chunks: `candela`, JSON for machines, and `parameters`, the line format that image
viewers and galleries have understood since AUTOMATIC1111's web UI.

Files are named, never where they lie: pictures are given away, and a path would tell of the home that they come from
or, in a stranger's picture, make who reads it open what it names.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candela.errors import OutputError
from candela.pictures import opened

if TYPE_CHECKING:
    from PIL import Image

KEY = "candela"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
NEXT_PART = re.compile(r",(?=\w+=)")  # between NAME=FILE and NAME=FILE


def file_name_of(path: str) -> str:
    """The last part of a path of any system; a picture made on Windows is read elsewhere too."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def names_of(model: str) -> str:
    """What `--model` takes, with names in place of paths; a name of the catalogue or on the hub stays."""

    def named(part: str) -> str:
        component = re.match(r"\w+=|", part)
        assert component
        place = part[component.end() :]
        return component[0] + (place if HUB_ID.fullmatch(place) else file_name_of(place))

    return ",".join(map(named, NEXT_PART.split(model)))


@dataclass(frozen=True)
class Start:
    """The picture an image-to-image run began from: its file's name, where known, and the sha256 of its RGB pixels."""

    name: str | None
    sha256: str


@dataclass(frozen=True)
class Lora:
    """A LoRA that was on: its file's name, how strongly, and the sha256 of the file."""

    name: str
    strength: float
    sha256: str


@dataclass(frozen=True)
class Record:
    """One picture's settings, all explicit. `cfg` is ComfyUI's number for the same guidance; `mode` is exact, or fast
    with the numbers that were computed with: "fast int8", "fast fp8".

    `model` is a name of the catalogue or on the hub, else that of a folder or of files, as in `names_of`;
    `fingerprint` is of its files (`checkpoints.fingerprint`), empty in records of before they were taken.
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
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """
        Raises:
            ValueError: not a record; it says which value is missing or of another kind.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        record = _checked(cls, values, "it")
        return replace(record, model=names_of(record.model))

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
                {"LoRA": " + ".join(f"{Path(one.name).stem} {one.strength:g}" for one in self.loras)}
                if self.loras
                else {}
            ),
            "Version": f"candela {self.versions.get('candela', '')}".strip(),
        }
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
        return "\n".join(lines)


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a character
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


# What a field may hold, by its annotation.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "a text"),
    "str | None": (lambda value: value is None or _is_text(value), "a text or null"),
    "int": (lambda value: type(value) is int and 0 <= value < 2**64, "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "dict[str, str]": (_is_texts, "texts by name"),
    "Start | None": (lambda value: value is None or isinstance(value, dict), "an object or null"),
    "tuple[Lora, ...]": (lambda value: isinstance(value, list), "a list"),
}


def _checked(cls: type[Any], values: Any, what: str) -> Any:
    """A `cls` of JSON's `values`; what it does not know is left out: a later Candela may say more.

    Raises:
        ValueError: a value is missing or of another kind.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} is not an object")
    if "path" in values and cls is not Record:  # records of before said where files lay
        values = {"name": file_name_of(values["path"]) if _is_text(values["path"]) else values["path"]} | values
    found: dict[str, Any] = {}
    for each in fields(cls):
        if each.name not in values:
            if each.default is MISSING and each.default_factory is MISSING:
                raise ValueError(f"{what} has no {each.name!r}")
            continue
        value = values[each.name]
        fits, kind = KINDS[str(each.type)]
        if not fits(value):
            raise ValueError(f"{what} has {each.name!r} = {json.dumps(value)[:40]}, and not {kind}")
        found[each.name] = value
    if found.get("start") is not None:
        found["start"] = _checked(Start, found["start"], "its start")
    if "loras" in found:
        found["loras"] = tuple(_checked(Lora, one, "a LoRA") for one in found["loras"])
    return cls(**found)


def pixels_sha256(image: Image.Image) -> str:
    """sha256 of the RGB pixels: equal for equal pictures, whatever file they lie in."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def read_record(path: str | Path) -> Record:
    """The record inside a PNG that Candela wrote.

    Raises:
        OutputError: no such file, not a picture, or no record in it.
    """
    try:
        with opened(path, ("PNG",)) as image:
            text = image.info.get(KEY)
            if text is None:
                image.load()  # another program may have put it behind the pixels
                text = image.info.get(KEY)
    except FileNotFoundError as error:
        raise OutputError(f"there is no file {path}") from error
    except ValueError as error:
        raise OutputError(f"{path} cannot be read as a picture ({error}). Give a PNG that Candela wrote") from error
    if text is None:
        raise OutputError(
            f"{path} carries no Candela record: it was made elsewhere, or saved again by a program that drops it"
        )
    try:
        return Record.from_json(text)
    except ValueError as error:
        raise OutputError(
            f"{path}: its Candela record is damaged: {str(error)[:300]}. Take the picture as Candela saved it"
        ) from error


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
        make_folder(folder)
        return _write_new(folder, stem, data)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}. Choose another folder") from error


def make_folder(folder: Path) -> None:
    """And those above it, however many: `mkdir(parents=True)` calls itself for each.

    Raises:
        OSError: one of them cannot be created.
    """
    for each in (*reversed(folder.parents), folder):
        each.mkdir(exist_ok=True)


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
