"""A hub's repository: files as they were published, and how its API lists them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".gguf", "tokenizer.json")
LFS_FROM = 10_000_000  # bytes; the hub takes no larger file into git itself


@dataclass(frozen=True)
class Blob:
    """A file as published: an open descriptor, and what the hub knows of it."""

    descriptor: int
    bytes: int
    sha1: str  # as git names it
    sha256: str
    lfs: bool

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.bytes}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.sha1

    def entry(self, path: str) -> dict[str, Any]:
        """As the API's tree lists it."""
        if not self.lfs:
            return {"type": "file", "oid": self.sha1, "size": self.bytes, "path": path}
        lfs = {"oid": self.sha256, "size": self.bytes, "pointerSize": len(self.pointer)}
        return {"type": "file", "oid": git_name(self.pointer), "size": self.bytes, "path": path, "lfs": lfs}


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_blob(path: Path) -> Blob:
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    sha1, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
    lfs = path.name.endswith(LFS_SUFFIXES) or size > LFS_FROM
    for start in range(0, size, 1 << 20):
        piece = os.pread(descriptor, 1 << 20, start)
        sha256.update(piece)
        if not lfs:
            sha1.update(piece)
    return Blob(descriptor, size, sha1.hexdigest(), sha256.hexdigest(), lfs)


def entries(tree: dict[str, Blob], recursive: bool) -> Iterator[dict[str, Any]]:
    """Of a repository, as the API lists them: folders too."""
    folders = {"/".join(path.split("/")[:depth]) for path in tree for depth in range(1, path.count("/") + 1)}
    for path in sorted([*folders, *tree]):
        if recursive or "/" not in path:
            if path in folders:
                yield {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
            else:
                yield tree[path].entry(path)
