"""Where files come from: the hub or a mirror of it, a folder, or a plain URL prefix. All of them can list what a model
consists of and open a file at a byte."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import requests

from candela.checkpoints.folder import CONFIG_NAMES, STEMS
from candela.checkpoints.headers import json_text
from candela.checkpoints.published import CHECKSUMS, REVISIONS
from candela.errors import SourceError, WrongContent
from candela.install.http import Body, Refused, Web, check_range, retrying

MODEL_INDEX = "model_index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


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
        may also lie as ComfyUI sorts them, below `kind`. Of the hub, at a revision, else the newest.

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
        """A small file, whole."""

        def once() -> bytes:
            with self.open(remote, 0, remote.bytes) as body:
                return b"".join(iter(lambda: body.read(1 << 16), b""))

        return retrying(once, self.closing, self.notice)


def open_source(name: str = "hub") -> Source:
    """`hub` (HF_ENDPOINT and HF_TOKEN honoured), a URL prefix, or a folder.

    Raises:
        SourceError: neither of these.
    """
    if name == "hub":
        from huggingface_hub import get_token

        return Hub((os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"), get_token())
    if re.match(r"https?://", name):
        return Prefix(name.rstrip("/"))
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise SourceError(
            f"the source {name} is neither a folder here nor a URL: give --from FOLDER or --from https://..."
        )
    return Folder(folder)


class Hub(Source):
    """The Hugging Face hub, or a server that answers like it."""

    connections = 4

    def __init__(self, endpoint: str, token: str | None):
        super().__init__()
        self.name, self._endpoint = endpoint, endpoint
        self._web = Web(token, endpoint)
        self._links: dict[Remote, str] = {}
        self._listings: dict[str, list[Remote]] = {}

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        if repository not in self._listings:
            self._listings[repository] = self._listing(repository, self._commit(repository, revision))
        return _chosen(self._listings[repository], paths, repository, self.name)

    def _commit(self, repository: str, wanted: str) -> str:
        """The commit to take: the one that an unfinished install began with, else the one known to Candela, else the
        newest. All files of an install are of one commit."""
        for revision in filter(None, (wanted, REVISIONS.get(repository), "main")):
            try:
                return str(self._json(f"{self._endpoint}/api/models/{repository}/revision/{revision}")[0]["sha"])
            except Refused as error:
                if error.code != "RevisionNotFound" or revision == "main":
                    raise
                self.notice(f"{self.name} has no commit {revision[:12]} of {repository}: taking the newest")
        raise AssertionError("main was tried last")

    def _listing(self, repository: str, revision: str) -> list[Remote]:
        found: list[Remote] = []
        url: str | None = f"{self._endpoint}/api/models/{repository}/tree/{revision}?recursive=true"
        while url:
            entries, url = self._json(url)
            found += [self._remote(repository, revision, e) for e in entries if e.get("type") == "file"]
        return found

    def _remote(self, repository: str, revision: str, entry: dict[str, Any]) -> Remote:
        lfs, path = entry.get("lfs"), entry["path"]
        place = f"{self._endpoint}/{repository}/resolve/{revision}/{urllib.parse.quote(path)}"
        if lfs:
            return _checked(
                Remote(repository, revision, path, lfs["size"], place, "sha256", lfs["oid"], "hub"), self.name
            )
        return _checked(
            Remote(repository, revision, path, entry["size"], place, "git-sha1", entry["oid"], "hub"), self.name
        )

    def _json(self, url: str) -> tuple[Any, str | None]:
        """-> the answer, and the address of the next page."""

        def once() -> tuple[Any, str | None]:
            with contextlib.closing(self._web.get(url)) as response:
                try:
                    return response.json(), response.links.get("next", {}).get("url")
                except ValueError as error:
                    raise SourceError(
                        f"{url} does not answer as the hub does (no JSON). Is HF_ENDPOINT right? A plain server of "
                        "files is given with --from URL"
                    ) from error

        return retrying(once, self.closing, self.notice)

    @contextlib.contextmanager
    def open(self, remote: Remote, start: int, end: int) -> Iterator[Readable]:
        if (start, end) == (0, remote.bytes):
            response = self._web.get(remote.place)
        else:
            response = self._part(remote, {"Range": f"bytes={start}-{end - 1}"})
        check_range(response, start, end, remote.bytes)
        with Body(response) as body:
            yield body

    def _part(self, remote: Remote, part: dict[str, str]) -> requests.Response:
        """Asks the storage behind the hub, whose link is good for an hour and for any part if it was asked for without
        one. (The hub counts its own answers: 3,000 in five minutes, for all machines behind one address.)"""
        link = self._links.get(remote)
        if link is None:
            with contextlib.closing(self._web.get(remote.place, method="HEAD", away=False)) as response:
                link = self._links[remote] = response.headers.get("Location") or response.url
        try:
            return self._web.get(link, part)
        except Refused:
            self._links.pop(remote, None)  # it has expired, or is good for one part only
            return self._web.get(remote.place, part)


class Prefix(Source):
    """A plain web server: files below its address as owner/name/path, as path, or side by side."""

    connections = 4

    def __init__(self, prefix: str):
        super().__init__()
        self.name = prefix
        self._web = Web()

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        if paths:
            found = [self._find(repository, path, kind) for path in paths]
            return _chosen([remote for remote in found if remote], paths, repository, self.name)
        index = self._find(repository, MODEL_INDEX)
        if index is None:
            return []
        names = [path for component, cls in components_of(self.read(index)) for path in self._possible(component, cls)]
        remotes = [index, *filter(None, (self._find(repository, path) for path in names))]
        for remote in list(remotes):
            if remote.path.endswith(".index.json"):
                shards = json_text.parse(self.read(remote)).get("weight_map", {}).values()
                place = remote.path.rpartition("/")[0]
                remotes += filter(None, (self._find(repository, f"{place}/{shard}") for shard in sorted(set(shards))))
        return remotes

    def _possible(self, component: str, class_name: str) -> list[str]:
        """What a component's folder may hold: a plain server cannot be asked for a list."""
        configs = [name for word, names in CONFIG_NAMES.items() if word in class_name for name in names]
        weights = [f"{stem}{end}" for stem in STEMS for end in
                   (".safetensors", ".safetensors.index.json", ".fp16.safetensors",
                    ".safetensors.index.fp16.json")]  # fmt: skip
        names = (
            [*configs, *(TOKENIZER_FILES if "Tokeniz" in class_name else ())] if configs else ["config.json", *weights]
        )
        return [f"{component}/{name}" for name in dict.fromkeys(names)]

    def _find(self, repository: str, path: str, kind: str = "") -> Remote | None:
        for below in dict.fromkeys(_candidates(repository, path, kind)):
            place = f"{self.name}/{urllib.parse.quote(below)}"

            def head(place: str = place) -> tuple[int, str] | None:
                try:
                    with contextlib.closing(self._web.get(place, method="HEAD")) as answer:
                        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                        return int(answer.headers.get("Content-Length", -1)), version
                except Refused as error:
                    if error.status in (404, 410):
                        return None
                    raise

            found = retrying(head, self.closing, self.notice)
            if found and found[0] < 0:
                raise SourceError(f"{place} does not tell its length, which a download needs. Give another source")
            if found:
                return _checked(Remote(repository, "", path, found[0], place, version=found[1]), self.name)
        return None

    @contextlib.contextmanager
    def open(self, remote: Remote, start: int, end: int) -> Iterator[Readable]:
        headers = {} if (start, end) == (0, remote.bytes) else {"Range": f"bytes={start}-{end - 1}"}
        response = self._web.get(remote.place, headers)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if version != remote.version and not remote.digest:
            response.close()
            raise WrongContent(
                f"{remote.place} has changed while it was downloaded ({remote.version} became {version}). Nothing of "
                "it was kept; run the same command again"
            )
        check_range(response, start, end, remote.bytes)
        with Body(response) as body:
            yield body


class Folder(Source):
    """Files on a disk or a share: as owner/name/path, as the hub's cache keeps them, as ComfyUI sorts them, or side by
    side."""

    def __init__(self, folder: Path):
        super().__init__()
        self.name, self._folder = str(folder), folder

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        if paths:
            found = [self._find(repository, path, kind) for path in paths]
            return _chosen([remote for remote in found if remote], paths, repository, self.name)
        roots = [root for root in self._roots(repository) if (root / MODEL_INDEX).is_file()]
        if not roots:
            return []
        below = (file for file in sorted(roots[0].rglob("*")) if file.is_file())
        return [self._remote(repository, file.relative_to(roots[0]).as_posix(), file) for file in below]

    def _roots(self, repository: str) -> list[Path]:
        name = repository.rpartition("/")[2]
        cached = self._folder / f"models--{repository.replace('/', '--')}" / "snapshots"
        snapshots = sorted(cached.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True) if cached.is_dir() else []
        return [self._folder / repository, *snapshots, self._folder / name, self._folder]

    def _find(self, repository: str, path: str, kind: str) -> Remote | None:
        places = [root / path for root in self._roots(repository)]
        places += [self._folder / below for below in _candidates(repository, path, kind)]
        file = next((place for place in places if place.is_file()), None)
        return self._remote(repository, path, file) if file else None

    def _remote(self, repository: str, path: str, file: Path) -> Remote:
        stat, blob = file.stat(), file.resolve().name
        remote = Remote(repository, "", path, stat.st_size, str(file), version=str(stat.st_mtime_ns))
        if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):  # the hub's cache names files by their sha256
            remote = replace(remote, algorithm="sha256", digest=blob, evidence="hub")
        return _checked(remote, self.name)

    @contextlib.contextmanager
    def open(self, remote: Remote, start: int, end: int) -> Iterator[Readable]:
        with contextlib.ExitStack() as closing:
            file = _File(remote.place)
            closing.callback(file.close)
            if file.length != remote.bytes:
                raise WrongContent(f"{remote.place} has changed while it was copied. Run the same command again")
            file.seek(start)
            yield file


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


def _candidates(repository: str, path: str, kind: str) -> list[str]:
    """Where a file may lie below a folder or a URL that somebody filled by hand."""
    name = path.rpartition("/")[2]
    sorted_by_kind = [f"{kind}/{name}", name] if kind else []
    return [f"{repository}/{path}", f"{repository.rpartition('/')[2]}/{path}", path, *sorted_by_kind]


def _checked(remote: Remote, source: str) -> Remote:
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


def _chosen(found: list[Remote], paths: Sequence[str], repository: str, source: str) -> list[Remote]:
    """Those at `paths`, in that order; all if none are named."""
    if not paths:
        return found
    by_path = {remote.path: remote for remote in found}
    if absent := [path for path in paths if path not in by_path]:
        raise Absent(
            f"{source} has no {' and no '.join(absent)} of {repository}. Give another source, or another precision"
        )
    return [by_path[path] for path in paths]
