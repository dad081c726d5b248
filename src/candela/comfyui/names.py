"""Which models the Load node lists, and where they lie: ComfyUI's model folders, then Candela's catalogue."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
from pathlib import Path

import folder_paths

from candela.checkpoints import Checkpoint, read_checkpoint
from candela.checkpoints.catalogue import CATALOGUE, find, installed
from candela.errors import ModelNotFound

FOLDER = "diffusers"  # ComfyUI's name for the folder type


def listed() -> list[str]:
    """The demo, folders in diffusers layout under models/diffusers (extra model paths included), what the hub cache
    holds, and the rest of the catalogue, which says what to run when it is chosen."""
    names = ["demo", *sorted(_folders()), *(model.name for model in installed()), *CATALOGUE]
    return list(dict.fromkeys(names))


def location(name: str) -> str:
    """-> what `Engine.load` takes for `name`: a folder of ComfyUI's, else a catalogue name or hub id.

    Raises:
        ModelNotFound: nothing of that name; the message says where it was looked for.
    """
    folders = _folders()
    if name in folders:
        return str(folders[name])
    place = _roots()[0]
    if name in CATALOGUE or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and ".." not in name):
        try:
            find(name)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}. Or put its folder into {place} under the name {name}") from error
        return name
    near = difflib.get_close_matches(name, listed(), n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose one from the list."
    raise ModelNotFound(
        f"there is no model {name!r} here. {hint} A folder in diffusers layout appears in the list once it lies in "
        f"{place}"
    )


def fingerprint(name: str) -> str:
    """Changes when a file of the model does: names, sizes and times of change.

    Raises:
        ModelNotFound: as `location`.
    """
    digest = hashlib.sha256()
    root = find(location(name)).folder
    for place, below, files in os.walk(root, followlinks=True):
        below.sort()
        for file in sorted(files):
            path = os.path.join(place, file)
            with contextlib.suppress(OSError):  # a link to nowhere; loading will say so
                stat = os.stat(path)
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"{root} {digest.hexdigest()}"


def checkpoint(name: str) -> Checkpoint:
    """What the files of `name` say of themselves.

    Raises:
        CheckpointError: it is not here, or its files cannot be used.
    """
    return read_checkpoint(location(name))


def listed_loras() -> list[str]:
    """The safetensors files under models/loras (extra model paths included)."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith((".safetensors", ".sft"))]


def lora_file(name: str) -> str:
    """
    Raises:
        ModelNotFound: nothing of that name; the message says where it was looked for.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        listed = listed_loras()
        near = difflib.get_close_matches(name, listed, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Choose one from the list."
        places = folder_paths.get_folder_paths("loras")
        raise ModelNotFound(f"there is no LoRA {name!r} here. {hint} Files in {places[0]} appear in the list")
    return path


def lora_fingerprint(name: str) -> str:
    """Changes when the file does.

    Raises:
        ModelNotFound: as `lora_file`.
    """
    path = lora_file(name)
    stat = os.stat(path)
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def _roots() -> list[str]:
    return folder_paths.get_folder_paths(FOLDER)


def _folders() -> dict[str, Path]:
    """Every folder with a model_index.json, by its path below the root; an earlier root wins."""
    found: dict[str, Path] = {}
    for root in _roots():
        for place, below, files in os.walk(root, followlinks=True):
            if "model_index.json" in files:
                found.setdefault(Path(place).relative_to(root).as_posix(), Path(place))
                below.clear()
    return found
