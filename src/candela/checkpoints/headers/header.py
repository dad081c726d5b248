"""The header of a weight file, whatever its format."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from candela import regular
from candela.errors import DamagedFile

MAX_TENSORS = 50_000  # the largest image models have about 10,000


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in a file.

    Attributes:
        dtype: as the format spells it: F32, BF16, F8_E4M3, Q4_K.
        shape: of the values that it stands for, rows first, also where they are packed into blocks (GGUF).
        offset: of its first byte in the file.
        bytes: that it takes there.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What a weight file says of itself.

    Attributes:
        format: safetensors or gguf.
        bytes: of the whole file.
        metadata: text by name for safetensors; for GGUF its scalars, texts and short lists.
    """

    path: Path
    format: str
    bytes: int
    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any] = field(default_factory=dict)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """
    Raises:
        DamagedFile: something at or below `path` that may not be read, or a disk that fails.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or path
        remedy = "Give a file" if isinstance(error, IsADirectoryError) else "Check its permissions"
        raise DamagedFile(f"{place} cannot be read: {error.strerror or error}. {remedy}") from error


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file.

    Raises:
        DamagedFile: it is something else.
        OSError: it cannot be opened.
    """
    try:
        return regular.open_regular(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise DamagedFile(f"{path} is not a regular file. Give the file itself") from error
        raise


def check_layout(path: Path, tensors: Iterable[StoredTensor], begin: int, size: int) -> None:
    """Do the tensors lie within the file's data, begin..size, without overlapping?

    Raises:
        DamagedFile: no; the first offender is named, in numbers.
    """
    ordered = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.bytes))
    end, before = begin, "the header"
    for tensor in ordered:
        if tensor.offset < end:
            raise DamagedFile(
                f"{path}: the tensor {tensor.name[:80]!r} begins at byte {tensor.offset}, inside {before}, which ends "
                f"at {end}. The file was not written by a sound program; download it again"
            )
        end, before = tensor.offset + tensor.bytes, repr(tensor.name[:80])
    if end > size:
        raise DamagedFile(
            f"{path} is truncated: its header describes {end} bytes, the file has {size}. Download it again"
        )
