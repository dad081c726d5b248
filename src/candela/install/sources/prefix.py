"""A plain web server, which cannot be asked what it has."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator, Sequence

from candela.checkpoints.folder import CONFIG_NAMES, STEMS
from candela.errors import SourceError, WrongContent
from candela.install.http import Body, Refused, Web, check_range, length_of, retrying
from candela.install.sources.source import (
    MODEL_INDEX,
    Readable,
    Remote,
    Source,
    candidates,
    checked,
    chosen,
    components_of,
    shards_of,
)

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


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
            return chosen([remote for remote in found if remote], paths, repository, self.name)
        index = self._find(repository, MODEL_INDEX)
        if index is None:
            return []
        names = [path for component, cls in components_of(self.read(index)) for path in self._possible(component, cls)]
        remotes = [index, *filter(None, (self._find(repository, path) for path in names))]
        for remote in list(remotes):
            if remote.path.endswith(".index.json"):
                place = remote.path.rpartition("/")[0]
                names = shards_of(self.read(remote))
                remotes += filter(None, (self._find(repository, f"{place}/{name}") for name in names))
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
        for below in dict.fromkeys(candidates(repository, path, kind)):
            place = f"{self.name}/{urllib.parse.quote(below)}"

            def head(place: str = place) -> tuple[int | None, str] | None:
                try:
                    with contextlib.closing(self._web.get(place, method="HEAD")) as answer:
                        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                        return length_of(answer), version
                except Refused as error:
                    if error.status in (404, 410):
                        return None
                    raise

            found = retrying(head, self.closing, self.notice)
            if found and found[0] is None:
                raise SourceError(f"{place} does not tell its length, which a download needs. Give another source")
            if found:
                return checked(Remote(repository, "", path, found[0], place, version=found[1]), self.name)
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
