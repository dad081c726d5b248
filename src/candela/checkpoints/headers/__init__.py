"""What a weight file says of itself before any tensor is read. Files come from strangers: every length is held
against the file's size and a limit before anything is allocated for it."""

from __future__ import annotations

from pathlib import Path

from candela.checkpoints.headers import gguf, safetensors
from candela.checkpoints.headers.header import Header, StoredTensor, open_regular, reading

__all__ = ["Header", "StoredTensor", "read_header", "reading"]


def read_header(path: Path) -> Header:
    """Reads the header of a safetensors or GGUF file, told apart by their first bytes.

    Raises:
        DamagedFile: neither of them, truncated, or with a header that contradicts itself or the file.
    """
    with reading(path), open_regular(path) as file:
        if file.read(4) == gguf.MAGIC:
            return gguf.read(path, file)
        return safetensors.read(path, file)
