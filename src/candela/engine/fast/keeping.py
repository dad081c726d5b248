"""8-bit weights kept on disk, so that the next start reads half the bytes and rounds nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints import Part
from candela.checkpoints.manifest import home
from candela.checkpoints.tensors import DTYPES
from candela.errors import CandelaWarning

LAYOUT = 1  # raised whenever the same source would be rounded otherwise
MOST = 4  # files; the one unused for longest goes first
ABANDONED = 3600  # seconds after which a half-written file is nobody's
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def folder(name: str) -> Path:
    """Below CANDELA_HOME, else below the platform's cache folder (~/.cache/candela, ~/Library/Caches/candela,
    %LOCALAPPDATA%\\candela\\Cache). All that is in it can be deleted at any time."""
    if os.environ.get("CANDELA_HOME"):
        return home() / "cache" / name
    import platformdirs

    return platformdirs.user_cache_path("candela", appauthor=False) / name


def kept_file(part: Part, kind: str, dtype: torch.dtype) -> Path:
    """Where the 8-bit weights of `part` are, or would be: another name as soon as one of its files changes."""
    files = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in part.files]
    prefix = part.found.prefix if part.found else ""
    key = hashlib.sha256(json.dumps([LAYOUT, kind, str(dtype), part.class_name, prefix, files]).encode()).hexdigest()
    return folder("fast") / f"{part.class_name}-{kind}-{key[:16]}.safetensors"


def keep(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes `path` whole or not at all, and deletes what is too much. Says so where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                write_safetensors(file, tensors, metadata)
                file.flush()
                os.fsync(file.fileno())
                file.close()
                os.replace(file.name, path)
            except BaseException:
                file.close()
                os.unlink(file.name)
                raise
    except OSError as error:
        warnings.warn(
            f"the 8-bit weights could not be kept in {path.parent} ({error.strerror or error}): the next start makes "
            "them again. Set CANDELA_HOME to a folder with room",
            CandelaWarning,
            stacklevel=2,
        )
    tidy(path.parent)


def write_safetensors(file: Any, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """As safetensors' own writer does, but one tensor in memory at a time. The format: `headers/safetensors.py`."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def tidy(place: Path) -> None:
    """Leaves the `MOST` files last used."""
    with contextlib.suppress(OSError):  # another process may be at it, or have one open
        kept = sorted(place.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        abandoned = [f for f in place.glob("*.part") if f.stat().st_mtime < time.time() - ABANDONED]
        for file in kept[MOST:] + abandoned:
            file.unlink()
