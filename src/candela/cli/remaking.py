"""`--like`: what a picture's record asks for, and the files that it names. A picture may come from a stranger, so its
record only ever names files; they are looked for in the working folder and beside the picture, and nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path

from candela.checkpoints.catalogue import CATALOGUE
from candela.checkpoints.checkpoint import Checkpoint
from candela.checkpoints.fingerprint import fingerprint
from candela.cli.output import say
from candela.errors import InvalidRequest, OutputError
from candela.record import HUB_ID, NEXT_PART, Record, read_record

NAME = re.compile(r"[^/\\:\0]+")  # of a file or folder, on any system; never a path


def remakeable(path: Path) -> Record:
    """The record of the picture at `path`.

    Raises:
        OutputError: there is none, or it cannot be made again from a record.
    """
    record = read_record(path)
    if not record.remake:
        raise OutputError(
            f"{path} was made from latents or a mask handed over in Python, which its record cannot hold: "
            "make it again there"
        )
    return record


def places(name: str, picture: Path) -> list[Path]:
    """Where a file or folder of that name is: in the working folder, beside `picture`, in both or in neither."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        return []
    # Of os.path, which takes a name that is too long, or half of a character, as one that is not there.
    return [path for path in dict.fromkeys((Path(name), picture.parent / name)) if os.path.exists(path)]


def missing(what: str, name: str, picture: Path, remedy: str) -> InvalidRequest:
    return InvalidRequest(
        f"{picture} was made with the {what} {name[:200]!r}, which is neither in the working folder nor beside the "
        f"picture. Copy it there, or {remedy}"
    )


def recorded_model(record: Record, picture: Path) -> str:
    """What `--model` takes for the model that `picture` was made with.

    Raises:
        InvalidRequest: it has no name of the catalogue or the hub, and its files are not where they are looked for.
    """
    found = []
    for part in NEXT_PART.split(record.model):
        component, equals, name = part.partition("=") if re.match(r"\w+=", part) else ("", "", part)
        if HUB_ID.fullmatch(name) and os.path.lexists(name):  # which would be opened instead of the hub's
            raise InvalidRequest(
                f"{picture} was made with the model {name!r}, and here is a folder or file of that name. Say which is "
                "meant with --model"
            )
        if name not in CATALOGUE and not HUB_ID.fullmatch(name):
            here = places(name, picture)
            if not here:
                raise missing("model", name, picture, "say where it is with --model")
            name = str(here[0])
        found.append(component + equals + name)
    return ",".join(found)


def check_same_model(record: Record, picture: Path, checkpoint: Checkpoint, *, found_by_name: bool) -> None:
    """Are the model's files those that `picture` was made with? Says so where they are not: what was typed is meant.

    Raises:
        InvalidRequest: they were found by their name alone, and are not.
    """
    if record.fingerprint in ("", fingerprint(checkpoint)):
        return
    if found_by_name and checkpoint.name != record.model:
        raise InvalidRequest(
            f"the model {checkpoint.name} has changed since {picture} was made, or is another one of that name. Put "
            "the old one back, or name one with --model"
        )
    say(f"note: {picture} was made with other files than those of {checkpoint.name}; the pixels may differ")
