"""What every source is: it lists files, and opens one at a byte."""

from __future__ import annotations

import contextlib
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from candela.checkpoints.folder import PLAIN
from candela.checkpoints.headers import json_text
from candela.checkpoints.published import CHECKSUMS, PUBLICATIONS
from candela.errors import SourceError, WrongContent
from candela.install.http import Temporary, retrying

MODEL_INDEX = "model_index.json"
CONFIG = "config.json"  # of a repository that is a single component
MAX_TEXT = 16_000_000  # bytes of a file that is read into memory; the index of a language model's shards has 3 MB


class Absent(SourceError):
    """The source is there, and has no such file."""


@dataclass(frozen=True)
class Remote:
    """One file at a source.

    Attributes:
        revision: a commit of the repository; "" where the source has none.
        place: where the source itself has it; a URL or a path.
        algorithm, digest: sha256, git-sha1 (of a blob) or md5, in hexadecimal; empty where nobody published one.
        evidence: whose checksum that is: published (it stands in Candela), hub, or size only.
        version: what changes with the content where there is no checksum: an ETag, a time of change.
    """

    repository: str
    revision: str
    path: str
    bytes: int
    place: str = ""
    algorithm: str = ""
    digest: str = ""
    evidence: str = "size only"
    version: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def origin(self) -> str:
        return f"{self.repository}{f'@{self.revision}' if self.revision else ''}/{self.path}"


class Readable(Protocol):
    def read(self, length: int, /) -> bytes: ...


class Source(ABC):
    """Attributes:
    name: for people and for the manifest.
    connections: how many parts of a file are worth reading at once.
    closing: set when a download ends early, so that nobody waits for another try.
    """

    name: str
    connections = 1

    def __init__(self) -> None:
        self.closing = threading.Event()
        self.notice: Callable[[str], None] = lambda message: None

    @abstractmethod
    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        """The files of a repository: all that may belong to the model in it, or those at `paths`; in a folder, these
        may also lie as ComfyUI sorts them, below `kind`, the folder below models; and a whole repository where Candela
        puts it. Of the hub, at a revision, else the newest.

        Raises:
            SourceError: it has not all of `paths`, or no such repository.
            WrongContent: it lists another checksum than the published one.
        """

    @abstractmethod
    def open(self, remote: Remote, start: int, end: int) -> contextlib.AbstractContextManager[Readable]:
        """Bytes [start, end) of a file; more may follow.

        Raises:
            SourceError, WrongContent: it cannot be had.
        """

    def read(self, remote: Remote) -> bytes:
        """A small file, whole.

        Raises:
            SourceError: as `open`; it is not small, or breaks off.
        """
        if remote.bytes > MAX_TEXT:
            raise SourceError(
                f"{self.name} has a {remote.path} of {remote.bytes} bytes; such a text has {MAX_TEXT} at most. Give "
                "another source"
            )

        def once() -> bytes:
            content = bytearray()
            with self.open(remote, 0, remote.bytes) as body:
                while piece := body.read(min(1 << 16, remote.bytes - len(content))):
                    content += piece
            if len(content) != remote.bytes:
                raise Temporary(
                    f"{self.name} broke off: {remote.path} ended after {len(content)} of {remote.bytes} bytes"
                )
            return bytes(content)

        return retrying(once, self.closing, self.notice)


def components_of(model_index: bytes) -> list[tuple[str, str]]:
    """The components that a model_index.json names, with their classes.

    Raises:
        SourceError: it is none.
    """
    try:
        value = json_text.parse(model_index)
        pairs = [(name, value[name][1]) for name in value if isinstance(value[name], list)]
        return [(name, cls) for name, cls in pairs if isinstance(cls, str) and re.fullmatch(r"[\w-]+", name)]
    except (ValueError, TypeError, IndexError) as error:
        raise SourceError(
            f"the source's {MODEL_INDEX} cannot be read ({str(error)[:100]}). Give another source"
        ) from error


def shards_of(weight_index: bytes) -> list[str]:
    """The files that a model.safetensors.index.json names.

    Raises:
        SourceError: it is none.
    """
    try:
        names = sorted(set(json_text.parse(weight_index)["weight_map"].values()))
        if not all(PLAIN.fullmatch(name) for name in names):
            raise ValueError("it names something that is no file beside it")
        return names
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f"the source's index of weights cannot be read ({str(error)[:100]}). Give another source"
        ) from error


def candidates(repository: str, path: str, kind: str) -> list[str]:
    """Where a file may lie below a folder or a URL that somebody filled by hand."""
    name = path.rpartition("/")[2]
    sorted_by_kind = [f"{kind}/{name}", name] if kind else []
    return [f"{repository}/{path}", f"{repository.rpartition('/')[2]}/{path}", path, *sorted_by_kind]


def folders_of(repository: str, kind: str) -> list[str]:
    """Where a whole repository may lie below a folder or a URL, the more particular first: as somebody put it there, or
    as Candela puts it into ComfyUI's models. The last, "", is that folder itself."""
    names = [name for name, publication in PUBLICATIONS.items() if publication.repository == repository]
    top = PUBLICATIONS[names[0]].kind if names else "diffusers"
    ours = [f"{top}/{name}" for name in (*names, repository)]
    return list(dict.fromkeys([repository, repository.rpartition("/")[2], *filter(None, [kind]), *ours, ""]))


def firsts_of(repository: str) -> tuple[str, ...]:
    """The files by which a whole repository is recognized. A folder may hold more than what is asked for, so of one
    that Candela knows it is not the other kind's."""
    kinds = {publication.kind for publication in PUBLICATIONS.values() if publication.repository == repository}
    return ((MODEL_INDEX,) if "diffusers" in kinds else (CONFIG,)) if kinds else (MODEL_INDEX, CONFIG)


def checked(remote: Remote, source: str) -> Remote:
    """With the published checksum, where there is one.

    Raises:
        WrongContent: the source lists another one for it.
    """
    algorithm, digest = CHECKSUMS.get((remote.repository, remote.path), ("", ""))
    if not algorithm:
        return remote
    if remote.algorithm == algorithm and remote.digest != digest:
        raise WrongContent(
            f"{source} lists {remote.origin} with the {algorithm} {remote.digest}; published was {digest}. It is "
            "another file now: update Candela, or give another source"
        )
    return replace(remote, algorithm=algorithm, digest=digest, evidence="published")


def chosen(found: list[Remote], paths: Sequence[str], repository: str, source: str) -> list[Remote]:
    """Those at `paths`, in that order; all if none are named."""
    if not paths:
        return found
    by_path = {remote.path: remote for remote in found}
    if absent := [path for path in paths if path not in by_path]:
        raise Absent(
            f"{source} has no {' and no '.join(absent)} of {repository}. Give another source, or another precision"
        )
    return [by_path[path] for path in paths]
