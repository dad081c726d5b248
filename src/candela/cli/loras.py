"""`--lora FILE[:STRENGTH]`, and the LoRAs that `--like` brings back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from candela.checkpoints.lora import Lora
from candela.engine.adapters import file_sha256, stamp
from candela.errors import InvalidRequest
from candela.record import Record


def wanted_loras(typed: Sequence[str], record: Record | None) -> list[Lora]:
    """What was typed, else the record's, whose files must be the same as then.

    Raises:
        InvalidRequest: a strength that is no number; a file of the record that is gone or has changed.
    """
    if typed or record is None:
        return [parsed(text) for text in typed]
    for lora in record.loras:
        path = Path(lora.path)
        if not path.is_file():
            raise InvalidRequest(
                f"the LoRA {path}, with which the picture was made, is not there any more. Put it back, or name "
                "another with --lora"
            )
        if file_sha256(lora.path, stamp(path)) != lora.sha256:
            raise InvalidRequest(
                f"the LoRA {path} has changed since the picture was made. Put the old one back, or name another "
                "with --lora"
            )
    return [Lora(lora.path, lora.strength) for lora in record.loras]


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
