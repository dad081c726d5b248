"""The header of a GGUF file, versions 2 and 3.

Format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, number of tensors, number of
metadata entries; the entries (name, type, value); per tensor name, dimensions (columns first), type, offset; then
the data, aligned. All numbers are little-endian.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from candela.checkpoints.headers.header import MAX_TENSORS, Header, StoredTensor, check_layout
from candela.errors import DamagedFile

MAGIC = b"GGUF"
MAX_HEADER = 128_000_000  # a vocabulary of 260,000 words with its merges takes 12
MAX_ENTRIES = 10_000
MAX_VALUES = 2_000_000  # in all lists together
KEPT_LIST = 64  # longer lists (a tokenizer's) are passed over
KEPT_TEXT = 1_000_000  # longer texts (a whole tokenizer.json) are passed over
MAX_TEXT = 16_000_000  # bytes of all names and texts that are kept; Python needs up to four times as much
MAX_NAME = 65_535  # the format's own limit, for names of entries

# Number -> name, values per block, bytes per block; ggml.h and ggml-common.h, as in the gguf package 0.19.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


class _Reader:
    """Reads forwards, never further than the file or the limit goes, in pieces of a megabyte."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.limit = min(self.size, MAX_HEADER)
        self.buffer, self.start, self.at = b"", 0, 0  # start: the buffer's place in the file; at: ours in the buffer
        self.values = self.kept = 0

    @property
    def position(self) -> int:
        return self.start + self.at

    def check(self, count: int, what: str) -> None:
        if count > self.limit - self.position:
            raise DamagedFile(
                f"{self.path}: its header claims {count} bytes for {what} at byte {self.position}, and the file has "
                f"{self.size} (headers end within {MAX_HEADER}). Download it again"
            )

    def ahead(self, count: int, what: str) -> int:
        """Makes `count` bytes available in the buffer; -> where they begin in it, and passes over them."""
        if self.at + count > len(self.buffer):
            self.check(count, what)
            self.start, self.buffer, self.at = self.position, self.buffer[self.at :], 0
            self.buffer += self.file.read(max(count - len(self.buffer), 1 << 20))
            if count > len(self.buffer):
                raise DamagedFile(f"{self.path} is truncated inside its header ({self.size} bytes). Download it again")
        begin = self.at
        self.at += count
        return begin

    def take(self, count: int, what: str) -> bytes:
        begin = self.ahead(count, what)
        return self.buffer[begin : begin + count]

    def skip(self, count: int, what: str) -> None:
        self.check(count, what)
        self.at += count
        if self.at > len(self.buffer):
            self.start, self.buffer, self.at = self.position, b"", 0
            self.file.seek(self.start)

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def name(self, what: str) -> str:
        length = self.number("Q", what)
        self.check(length, what)
        if length > MAX_NAME:
            raise DamagedFile(f"{self.path}: {what} is {length} bytes long. Download it again")
        return self._kept(length, what)

    def text(self, what: str) -> str:
        length = self.number("Q", what)
        if length <= KEPT_TEXT:
            return self._kept(length, what)
        self.skip(length, what)
        return f"{length} bytes of text"

    def _kept(self, length: int, what: str) -> str:
        self.kept += length
        if self.kept > MAX_TEXT:
            raise DamagedFile(f"{self.path}: its names and texts are longer than {MAX_TEXT} bytes. Download it again")
        return self.take(length, what).decode("utf-8", "replace")

    def count(self, values: int, what: str) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise DamagedFile(
                f"{self.path}: its lists claim more than {MAX_VALUES} entries, with {values} in {what!r}. "
                "Download it again"
            )

    def pass_over_texts(self, count: int, what: str) -> None:
        for _ in range(count):
            begin = self.ahead(8, what)
            length = int.from_bytes(self.buffer[begin : begin + 8], "little")
            if self.at + length <= len(self.buffer):
                self.at += length
            else:
                self.skip(length, what)


def read(path: Path, file: BinaryIO) -> Header:
    """
    Raises:
        DamagedFile: truncated, of another version, or with lengths that the file contradicts.
    """
    file.seek(0)
    reader = _Reader(path, file)
    reader.take(4, "its magic")
    version = reader.number("I", "its version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian" if swapped in (2, 3) else f"version {version}"
        raise DamagedFile(f"{path} is a GGUF file of a kind that nobody uses any more ({what}): get a newer one")
    tensor_count, entry_count = reader.number("Q", "counts"), reader.number("Q", "counts")
    if tensor_count > MAX_TENSORS or entry_count > MAX_ENTRIES:
        raise DamagedFile(
            f"{path}: its header claims {tensor_count} tensors and {entry_count} metadata entries; no model has more "
            f"than {MAX_TENSORS} and {MAX_ENTRIES}. Download it again"
        )
    metadata = {}
    for _ in range(entry_count):
        name = reader.name("the name of a metadata entry")
        if name in metadata:
            raise DamagedFile(f"{path}: the metadata entry {name[:80]!r} occurs twice. Download it again")
        metadata[name] = _value(reader, reader.number("I", name[:80]), name[:80], depth=0)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise DamagedFile(f"{path}: an alignment of {str(alignment)[:40]} bytes is none. Download it again")
    found = [_tensor(reader) for _ in range(tensor_count)]
    if odd := next((t for t in found if t.offset % alignment), None):
        raise DamagedFile(
            f"{path}: the tensor {odd.name[:80]!r} begins at byte {odd.offset} of the data, which is no multiple of "
            f"{alignment}. Download it again"
        )
    begin = -(-reader.position // alignment) * alignment
    tensors = {t.name: StoredTensor(t.name, t.dtype, t.shape, t.offset + begin, t.bytes) for t in found}
    if len(tensors) != len(found):
        raise DamagedFile(f"{path}: a tensor's name occurs twice. Download it again")
    check_layout(path, tensors.values(), begin, reader.size)
    return Header(path, "gguf", reader.size, tensors, metadata)


def _value(reader: _Reader, kind: int, what: str, depth: int) -> Any:
    """A value; of a list that is long, or of lists, only its length."""
    if kind in SCALARS:
        return reader.number(SCALARS[kind], what)
    if kind == TEXT:
        return reader.text(what)
    if kind != LIST or depth > 2:
        raise DamagedFile(
            f"{reader.path}: the metadata entry {what!r} is of the unknown type {kind}. Download it again"
        )
    element, count = reader.number("I", what), reader.number("Q", what)
    if element in SCALARS:
        width = struct.calcsize("<" + SCALARS[element])
        if count <= KEPT_LIST:
            reader.count(count, what)
            return [reader.number(SCALARS[element], what) for _ in range(count)]
        reader.skip(count * width, f"the list {what!r}")
        return f"{count} numbers"
    smallest = 8 if element == TEXT else 12  # bytes that an element takes at least
    reader.check(count * smallest, f"the list {what!r}")
    reader.count(count, what)
    if element != TEXT and count > KEPT_LIST:
        raise DamagedFile(f"{reader.path}: the list {what!r} claims {count} entries. Download it again")
    if element == TEXT:
        reader.pass_over_texts(count, what)
        return f"{count} texts"
    return [_value(reader, element, what, depth + 1) for _ in range(count)]


def _tensor(reader: _Reader) -> StoredTensor:
    """A tensor's entry, its offset still counted from the beginning of the data."""
    name = reader.name("a tensor's name")
    dimensions = reader.number("I", "a tensor's dimensions")
    if dimensions > 8:
        raise DamagedFile(f"{reader.path}: the tensor {name[:80]!r} claims {dimensions} dimensions. Download it again")
    shape = tuple(reader.number("Q", "a tensor's shape") for _ in range(dimensions))[::-1]
    kind, offset = reader.number("I", "a tensor's type"), reader.number("Q", "a tensor's offset")
    if kind not in TYPES:
        raise DamagedFile(
            f"{reader.path}: the tensor {name[:80]!r} is of the type {kind}, which is unknown here: the file is "
            "damaged, or newer than this version of Candela"
        )
    dtype, block, width = TYPES[kind]
    values = math.prod(shape)
    if values % block or (shape and shape[-1] % block) or values > 2**48:
        raise DamagedFile(
            f"{reader.path}: the tensor {name[:80]!r} is {list(shape)} in {dtype}, whose blocks are {block} long. "
            "Download it again"
        )
    return StoredTensor(name, dtype, shape, offset, values // block * width)
