"""The header of a safetensors file.

Format (https://github.com/huggingface/safetensors): 8 bytes of little-endian header
length N, N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the data, without holes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

from candela.checkpoints.headers import json_text
from candela.checkpoints.headers.header import MAX_TENSORS, Header, StoredTensor, check_layout
from candela.errors import DamagedFile

# The format allows 100 MB. Real headers stay below 5, and Python needs up to 20 times as much to parse one.
MAX_HEADER = 16_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64,
}  # fmt: skip


def read(path: Path, file: BinaryIO) -> Header:
    """
    Raises:
        DamagedFile: not safetensors, truncated, longer than its header says, or contradicting itself.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(64)
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= size - 8:
        raise DamagedFile(
            f"{path} is not a safetensors file, or only the beginning of one: {_what(start)} ({size} bytes). "
            "Download it again; other formats (.bin, .ckpt, .pt) are refused because opening them can run code"
        )
    if length > MAX_HEADER:
        raise DamagedFile(
            f"{path}: its header claims {length} bytes; no model needs more than {MAX_HEADER}. Download it again"
        )
    file.seek(8)
    text = file.read(length)
    try:
        entries = json_text.parse(text, _without_duplicates)
        metadata = entries.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts by name")
        if len(entries) > MAX_TENSORS:
            raise ValueError(f"it lists {len(entries)} tensors; no model has more than {MAX_TENSORS}")
        tensors = {name: _tensor(name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile(
            f"{path}: the safetensors header cannot be read ({str(error)[:200]}). Download it again"
        ) from error
    check_layout(path, tensors.values(), 8 + length, size)
    described = sum(t.bytes for t in tensors.values())
    expected = max((t.offset + t.bytes for t in tensors.values()), default=8 + length)
    if expected != 8 + length + described:
        raise DamagedFile(
            f"{path}: its tensors take {described} bytes of the {expected - 8 - length} that they are spread over. The "
            "format has no holes; download it again"
        )
    if size != expected:
        raise DamagedFile(
            f"{path} is longer than it should be: its header describes {expected} bytes, the file has {size}. "
            "Download it again"
        )
    return Header(path, "safetensors", size, tensors, metadata)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor(name: str, entry: dict[str, Any], begin: int) -> StoredTensor:
    dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"{name[:80]!r} has the unknown type {str(dtype)[:40]!r}")
    if (
        type(shape) is not list
        or len(shape) > 16
        or not all(type(n) is int and 0 <= n < 2**48 for n in [*shape, first, last])
        or last < first
    ):
        raise ValueError(f"{name[:80]!r} has a shape or an offset that is none")
    needed = math.prod(shape) * BITS[dtype]
    if needed != 8 * (last - first):
        raise ValueError(f"{name[:80]!r} is {dtype} {shape} and so {needed / 8:g} bytes long, but has {last - first}")
    return StoredTensor(name, dtype, tuple(shape), begin + first, last - first)


def _what(start: bytes) -> str:
    known = {b"PK": "a zip archive (perhaps a PyTorch pickle)", b"\x80": "a Python pickle", b"\x7fELF": "a program"}
    for magic, name in known.items():
        if start.startswith(magic):
            return f"it is {name}"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the weights themselves"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    return "its first bytes are not a header length"
