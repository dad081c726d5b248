"""The Hugging Face hub, or a server that answers like it.

Addresses, headers and the token are huggingface_hub's. Its downloads are not: they begin anew after a kill, compare
no checksum, and go over what lies there; its listing waits for ever on a hub that does not answer.
benchmarks/downloaders.py measures both.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import requests

from candela import __version__
from candela.checkpoints.headers import json_text
from candela.checkpoints.published import REVISIONS
from candela.errors import SourceError
from candela.install.http import Body, Refused, Web, check_range, retrying, without_userinfo
from candela.install.sources.source import Absent, Readable, Remote, Source, checked, chosen

MAX_JSON = 64_000_000  # bytes of an answer; a page of the hub's listing has 0.5 MB
MAX_PAGES, MAX_ENTRIES = 1000, 100_000  # of a repository's listing; the hub's pages have 1,000 entries


def hub_headers() -> dict[str, str]:
    """What huggingface_hub sends with each request: who asks, and the token, wherever it is kept.

    Raises:
        SourceError: it refuses one of its settings; the token is none.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else it asks the hub for a list of AI agents first
    try:
        from huggingface_hub.utils import build_hf_headers  # here, for it takes 0.1 s

        headers = build_hf_headers(library_name="candela", library_version=__version__)
    except Exception as error:  # of many kinds, some of them already at the import
        raise SourceError(
            f"huggingface_hub refuses its settings ({type(error).__name__}: {str(error)[:200]}). HF_HUB_ETAG_TIMEOUT "
            "and HF_HUB_DOWNLOAD_TIMEOUT are whole seconds; the token, in HF_TOKEN or kept by hf auth login, is text"
        ) from error
    if not re.fullmatch("(Bearer [!-~]+)?", headers.get("authorization", "")):
        raise SourceError(
            "the token in HF_TOKEN, or kept by hf auth login, has characters that no token has. Set it again, or "
            "unset it"
        )
    return headers


class Hub(Source):
    """The Hugging Face hub, or a server that answers like it."""

    connections = 4

    def __init__(self, endpoint: str, headers: Mapping[str, str]):
        super().__init__()
        self.name = self._endpoint = without_userinfo(endpoint)
        self._web, self._known = Web(headers, endpoint), "authorization" in headers
        self._links: dict[Remote, str] = {}
        self._listings: dict[tuple[str, str], list[Remote]] = {}

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        if (repository, revision) not in self._listings:
            self._listings[repository, revision] = self._listing(repository, self._commit(repository, revision))
        return chosen(self._listings[repository, revision], paths, repository, self.name)

    def _commit(self, repository: str, wanted: str) -> str:
        """The commit to take: the one that an unfinished install began with, else the one known to Candela, else the
        newest. All files of an install are of one commit."""
        for revision in filter(None, (wanted, REVISIONS.get(repository), "main")):
            try:
                answer, _ = self._json(f"{self._endpoint}/api/models/{repository}/revision/{revision}")
                sha = answer.get("sha") if isinstance(answer, dict) else None
                if not isinstance(sha, str) or not re.fullmatch("[0-9a-f]{40}", sha):
                    raise self._strange(f"names no commit of {repository}")
                return sha
            except Refused as error:
                if error.code != "RevisionNotFound" or revision == "main":
                    raise (Absent(str(error)) if self._unknown(error) else error) from error
                self.notice(f"{self.name} has no commit {revision[:12]} of {repository}: taking the newest")
        raise AssertionError("main was tried last")

    def _unknown(self, error: Refused) -> bool:
        """Is there no such repository? To strangers the hub says 401, since it may be a private one."""
        return error.status == 404 or (error.status == 401 and not error.code and not self._known)

    def _listing(self, repository: str, revision: str) -> list[Remote]:
        found: list[Remote] = []
        asked: set[str] = set()
        number = 0
        url: str | None = f"{self._endpoint}/api/models/{repository}/tree/{revision}?recursive=true"
        while url:
            if url in asked or len(asked) == MAX_PAGES or number > MAX_ENTRIES:
                raise self._strange(f"lists {repository} without an end: {len(asked)} pages, {number} entries")
            asked.add(url)
            entries, url = self._json(url)
            try:
                number += len(entries)
                found += [self._remote(repository, revision, e) for e in entries if e["type"] == "file"]
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise self._strange(f"lists {repository} in another way") from error
        return found

    def _strange(self, what: str) -> SourceError:
        return SourceError(
            f"{self.name} does not answer as the hub does: it {what}. Is HF_ENDPOINT right? A plain server of files is "
            "given with --from URL"
        )

    def _remote(self, repository: str, revision: str, entry: dict[str, Any]) -> Remote:
        """
        Raises:
            KeyError, TypeError, AttributeError, ValueError: the entry is not as the hub's are.
        """
        from huggingface_hub import hf_hub_url

        lfs, path = entry.get("lfs"), entry["path"]
        path.encode()  # JSON can hold half a character, and nothing else can
        place = hf_hub_url(repository, path, revision=revision, endpoint=self._endpoint)
        size, algorithm, digest = (
            (lfs["size"], "sha256", lfs["oid"]) if lfs else (entry["size"], "git-sha1", entry["oid"])
        )
        if type(size) is not int or not 0 <= size < 1 << 60:  # a bool is an int, and NaN is JSON for Python
            raise ValueError(f"{size!r} is no length")
        if not re.fullmatch("[0-9a-f]{64}" if lfs else "[0-9a-f]{40}", digest):
            raise ValueError(f"{digest!r} is no {algorithm}")
        return checked(Remote(repository, revision, path, size, place, algorithm, digest, "hub"), self.name)

    def _json(self, url: str) -> tuple[Any, str | None]:
        """-> the answer, and the address of the next page."""

        def once() -> tuple[Any, str | None]:
            response = self._web.get(url)
            with Body(response, decode=True) as body:
                text = body.whole(MAX_JSON)
            try:
                answer = json_text.parse(text)
            except ValueError as error:
                raise self._strange(f"gives no JSON that can be read ({str(error)[:100]})") from error
            following = response.links.get("next", {}).get("url")
            try:
                return answer, urllib.parse.urljoin(url, following) if following else None
            except ValueError as error:
                raise self._strange("leads to a next page that is no address") from error

        return retrying(once, self.closing, self.notice)

    @contextlib.contextmanager
    def open(self, remote: Remote, start: int, end: int) -> Iterator[Readable]:
        if (start, end) == (0, remote.bytes):
            response = self._web.get(remote.place)
        else:
            response = self._part(remote, {"Range": f"bytes={start}-{end - 1}"})
        check_range(response, remote.name, start, end, remote.bytes)
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
