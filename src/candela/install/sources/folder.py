"""A folder on a disk or a share."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from candela.errors import SourceError, WrongContent
from candela.install.sources.source import (
    Readable,
    Remote,
    Source,
    candidates,
    checked,
    chosen,
    firsts_of,
    folders_of,
)


class Folder(Source):
    """Files on a disk or a share: as owner/name/path, as the hub's cache keeps them, as ComfyUI sorts them, or side by
    side."""

    def __init__(self, folder: Path):
        super().__init__()
        self.name, self._folder = str(folder), folder

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        with self._told():
            if paths:
                found = [self._find(repository, path, kind) for path in paths]
                return chosen([remote for remote in found if remote], paths, repository, self.name)
            roots = self._roots(repository, kind)
            root = next((r for r in roots if any((r / name).is_file() for name in firsts_of(repository))), None)
            below = sorted(file for file in _below(root) if file.is_file()) if root else []
            return [self._remote(repository, file.relative_to(root).as_posix(), file) for file in below if root]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = error.filename or self.name
            raise SourceError(f"{place} cannot be read: {error.strerror or error}. Check the source") from error

    def _roots(self, repository: str, kind: str) -> list[Path]:
        cached = self._folder / f"models--{repository.replace('/', '--')}" / "snapshots"
        snapshots = sorted(cached.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True) if cached.is_dir() else []
        first, *others = [self._folder / below for below in folders_of(repository, kind)]
        return [first, *snapshots, *others]

    def _find(self, repository: str, path: str, kind: str) -> Remote | None:
        places = [root / path for root in self._roots(repository, kind)]
        places += [self._folder / below for below in candidates(repository, path, kind)]
        file = next((place for place in places if place.is_file()), None)
        return self._remote(repository, path, file) if file else None

    def _remote(self, repository: str, path: str, file: Path) -> Remote:
        stat, blob = file.stat(), file.resolve().name
        remote = Remote(repository, "", path, stat.st_size, str(file), version=str(stat.st_mtime_ns))
        if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):  # the hub's cache names files by their sha256
            remote = replace(remote, algorithm="sha256", digest=blob, evidence="hub")
        return checked(remote, self.name)

    @contextlib.contextmanager
    def open(self, remote: Remote, start: int, end: int) -> Iterator[Readable]:
        with contextlib.ExitStack() as closing:
            file = _File(remote.place)
            closing.callback(file.close)
            if file.length != remote.bytes:
                raise WrongContent(f"{remote.place} has changed while it was copied. Run the same command again")
            file.seek(start)
            yield file


def _below(root: Path) -> Iterator[Path]:
    """Every file; a folder that may not be read is an error, and not empty."""

    def stop(error: OSError) -> None:
        raise error

    for place, _, files in os.walk(root, onerror=stop):
        yield from (Path(place) / file for file in files)


class _File:
    """A file of a `Folder`, whose failures are the source's and not the target's."""

    def __init__(self, place: str):
        self._place = place
        with self._told():
            self._file = open(place, "rb", buffering=0)  # noqa: SIM115
            self.length = os.fstat(self._file.fileno()).st_size
        self.seek, self.close = self._file.seek, self._file.close

    def read(self, length: int, /) -> bytes:
        with self._told():
            return self._file.read(length)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceError(f"{self._place} cannot be read: {error.strerror or error}. Check the source") from error
