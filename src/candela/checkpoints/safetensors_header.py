"""Reads the header of a safetensors file, and tells a damaged file before a tensor is read.

Format (https://github.com/huggingface/safetensors): 8 bytes of little-endian header
length N, N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from candela.errors import DamagedFile

MAX_HEADER = 100_000_000  # bytes; the format's own limit


def read_header(path: Path) -> dict[str, Any]:
    """-> {tensor name: {dtype, shape, data_offsets}}, without the metadata.

    Raises:
        DamagedFile: not safetensors, truncated, or longer than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            whole = 2 <= length <= min(MAX_HEADER, size - 8)
            file.seek(8)
            text = file.read(length) if whole else b""
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}. Check its permissions") from error
    if not whole:
        raise DamagedFile(
            f"{path} is not a safetensors file, or only the beginning of one: {_what(start)} ({size} bytes). "
            "Download it again; other formats (.bin, .ckpt, .pt) are refused because opening them can run code"
        )
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path}: the safetensors header cannot be read ({error}). Download it again") from error
    expected = 8 + length + end
    if size != expected:
        relation = "truncated" if size < expected else "longer than it should be"
        raise DamagedFile(
            f"{path} is {relation}: its header describes {expected} bytes, the file has {size}. Download it again"
        )
    return header


def _what(start: bytes) -> str:
    known = {b"PK": "a zip archive (perhaps a PyTorch pickle)", b"\x80": "a Python pickle", b"GGUF": "a GGUF file"}
    for magic, name in known.items():
        if start.startswith(magic):
            return f"it is {name}"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the weights themselves"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    return "its first bytes are not a header length"
