"""`--lora FILE[:STRENGTH]`, and the LoRAs that `--like` brings back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from candela.checkpoints.lora import Lora
from candela.cli.remaking import missing, places
from candela.engine.adapters import file_sha256, stamp
from candela.errors import InvalidRequest
from candela.record import Lora as Named
from candela.record import Record


def wanted_loras(typed: Sequence[str], record: Record | None, like: Path | None) -> list[Lora]:
    """What was typed, else those that the picture `like` was made with, whose files must be the same as then.

    Raises:
        InvalidRequest: a strength that is no number; a file of the record that is not found or has changed.
    """
    if typed or record is None or like is None:
        return [parsed(text) for text in typed]
    return [Lora(_same(lora, like, record), lora.strength) for lora in record.loras]


def _same(lora: Named, like: Path, record: Record) -> Path:
    """The file that the record names, by its content."""
    again = " ".join(f"--lora {one.name}:{one.strength:g}" for one in record.loras)
    remedy = f"name all LoRAs and where they are: {again}"
    found = [path for path in places(lora.name, like) if os.path.isfile(path)]
    if not found:
        raise missing("LoRA", lora.name, like, remedy)
    for path in found:
        if file_sha256(str(path), stamp(path)) == lora.sha256:
            return path
    raise InvalidRequest(
        f"the LoRA {found[0]} has changed since {like} was made, or is another one of that name. Put the old one back, "
        f"or {remedy}"
    )


def parsed(text: str) -> Lora:
    """FILE or FILE:STRENGTH. A colon in the file's own name, or behind a drive's letter, is none of ours.

    Raises:
        InvalidRequest: it names no file; what follows the last colon is no number, and there is no such file.
    """
    if not text.partition(":")[0]:
        raise InvalidRequest(f"--lora {text!r} names no file: write FILE or FILE:STRENGTH")
    path, colon, strength = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Lora(text)
    try:
        return Lora(path, float(strength))
    except ValueError as error:
        if isinstance(error, InvalidRequest):
            raise
    if Path(path).is_file():
        raise InvalidRequest(f"--lora {text}: {strength!r} is no number. Write the strength as {path}:0.8")
    return Lora(text)
