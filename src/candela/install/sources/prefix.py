"""A plain web server, which cannot be asked what it has."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator, Sequence

from candela.checkpoints.folder import CONFIG_NAMES, STEMS
from candela.errors import SourceError, WrongContent
from candela.install.http import Body, Refused, Web, check_range, length_of, retrying, without_userinfo
from candela.install.sources.source import (
    CONFIG,
    MODEL_INDEX,
    Absent,
    Readable,
    Remote,
    Source,
    candidates,
    checked,
    chosen,
    components_of,
    firsts_of,
    folders_of,
    shards_of,
)

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


class Withheld(Absent, Refused):
    """The server refuses; those of S3's kind do so for what is not there, too."""


class Prefix(Source):
    """A plain web server: files below its address as owner/name/path, as path, or side by side."""

    connections = 4

    def __init__(self, prefix: str):
        super().__init__()
        self.name = without_userinfo(prefix)
        self._web = Web({}, prefix)

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        if paths:
            found = [self._first(repository, path, candidates(repository, path, kind)) for path in paths]
            return chosen([remote for remote in found if remote], paths, repository, self.name)
        places = {f"{folder}/{name}".lstrip("/"): name for folder in folders_of(repository, kind)
                  for name in firsts_of(repository)}  # fmt: skip
        withheld: Withheld | None = None
        for place, name in places.items():
            try:
                first = self._at(repository, name, place)
            except Withheld as error:
                withheld, first = withheld or error, None
            if first:
                return self._whole(repository, first, place.removesuffix(name))
        if withheld:
            raise withheld
        return []

    def _whole(self, repository: str, first: Remote, folder: str) -> list[Remote]:
        """All files of the repository whose model_index.json or config.json is `first`, below `folder`."""
        components = components_of(self.read(first)) if first.name == MODEL_INDEX else [("", "")]
        remotes = [first] if first.name == MODEL_INDEX else []
        for component, cls in components:
            remotes += self._component(repository, self._possible(component, cls), folder)
        for remote in list(remotes):
            if remote.path.endswith(".index.json"):
                place = remote.path.rpartition("/")[0]
                shards = [f"{place}/{name}".lstrip("/") for name in shards_of(self.read(remote))]
                remotes += filter(None, (self._at(repository, path, folder + path) for path in shards))
        return remotes

    def _component(self, repository: str, paths: list[str], folder: str) -> list[Remote]:
        """Those that are there of all that may be."""
        found: list[Remote] = []
        withheld: Withheld | None = None
        for path in paths:
            try:
                remote = self._at(repository, path, folder + path)
            except Withheld as error:
                withheld, remote = withheld or error, None
            found += [remote] if remote else []
        wanted = [path for path in paths if ".safetensors" in path] or paths
        if withheld and not any(remote.path in wanted for remote in found):
            raise withheld
        return found

    def _possible(self, component: str, class_name: str) -> list[str]:
        """What a component's folder may hold: a plain server cannot be asked for a list."""
        configs = [name for word, names in CONFIG_NAMES.items() if word in class_name for name in names]
        weights = [f"{stem}{end}" for stem in STEMS for end in
                   (".safetensors", ".safetensors.index.json", ".fp16.safetensors",
                    ".safetensors.index.fp16.json")]  # fmt: skip
        names = [*configs, *(TOKENIZER_FILES if "Tokeniz" in class_name else ())] if configs else [CONFIG, *weights]
        return [f"{component}/{name}".lstrip("/") for name in dict.fromkeys(names)]

    def _first(self, repository: str, path: str, places: Sequence[str]) -> Remote | None:
        withheld: Withheld | None = None
        for place in dict.fromkeys(places):
            try:
                if found := self._at(repository, path, place):
                    return found
            except Withheld as error:
                withheld = withheld or error
        if withheld:
            raise withheld
        return None

    def _at(self, repository: str, path: str, below: str) -> Remote | None:
        """
        Raises:
            Withheld: the server does not say whether it is there.
        """
        place = f"{self.name}/{urllib.parse.quote(below)}"

        def head() -> tuple[int | None, str] | None:
            try:
                with contextlib.closing(self._web.get(place, method="HEAD")) as answer:
                    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                    return length_of(answer), version
            except Refused as error:
                if error.status in (404, 410):
                    return None
                if error.status in (401, 403):
                    raise Withheld(str(error), error.status, error.code) from error
                raise

        found = retrying(head, self.closing, self.notice)
        if not found:
            return None
        if found[0] is None:
            raise SourceError(f"{place} does not tell its length, which a download needs. Give another source")
        return checked(Remote(repository, "", path, found[0], place, version=found[1]), self.name)

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
        check_range(response, remote.name, start, end, remote.bytes)
        with Body(response) as body:
            yield body
