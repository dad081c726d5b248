"""HTTP as a download needs it: ranges, redirects to signed links, retries, and every failure told in a sentence."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import requests
import urllib3

from candela.errors import SourceError, WrongContent

BACKOFF = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try, as long as nothing arrives
LONGEST_WAIT = 300.0  # seconds that a server may ask us to wait before we give up instead
TEMPORARY = {408, 429, 500, 502, 503, 504}
HUB = "https://huggingface.co"


class Temporary(SourceError):
    """A failure that may be gone on the next try; `after` seconds, if the server says how long it wants to be left
    alone."""

    def __init__(self, message: str, after: float | None = None):
        super().__init__(message)
        self.after = after


class Refused(SourceError):
    """The server answered, and said no: its status, and the hub's own word for the reason, if any."""

    def __init__(self, message: str, status: int, code: str):
        super().__init__(message)
        self.status, self.code = status, code


class NoRanges(SourceError):
    """The server sends the whole file when asked for a part of it."""


def timeout() -> float:
    """Seconds without a byte after which a connection counts as stalled: HF_HUB_DOWNLOAD_TIMEOUT, else 30."""
    with contextlib.suppress(ValueError):
        seconds = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 30)
        return seconds if 0 < seconds < 1e6 else 30.0
    return 30.0


def without_userinfo(url: str) -> str:
    """An address as it may be shown and kept: http://user:password@host/path is http://host/path."""
    return re.sub(r"^(\w+://)[^/?#]*@", r"\1", url)


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: a secret of one origin is sent to no other.

    Raises:
        ValueError: it is no address.
    """
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def host_of(url: str) -> str:
    """Its host and port, for people."""
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


def retrying(action: Callable[[], Any], closing: threading.Event, notice: Callable[[str], None]) -> Any:
    """What `action` returns; a `Temporary` failure is tried again after a growing pause.

    Raises:
        SourceError: the last failure, once all tries are used up.
    """
    for pause in BACKOFF:
        try:
            return action()
        except Temporary as error:
            wait_for(error, pause, closing, notice)
    return action()


def wait_for(error: Temporary, pause: float, closing: threading.Event, notice: Callable[[str], None]) -> None:
    """Waits before the next try, as long as the server asks for.

    Raises:
        SourceError: it asks for too long, or the download is closing.
    """
    pause = pause if error.after is None else error.after
    if pause > LONGEST_WAIT:
        raise SourceError(f"{error}. It asks to be left alone for {pause:.0f} s: run the same command again then")
    notice(f"{str(error).partition('. ')[0]}: trying again in {pause:.0f} s")
    if closing.wait(pause):
        raise error


class _Session(requests.Session):
    """Decides about secrets anew at each redirect: requests itself would pass them from http to https, and add those of
    a ~/.netrc."""

    def __init__(self, authorize: Callable[[requests.PreparedRequest], requests.PreparedRequest]):
        super().__init__()
        self._authorize = authorize

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        prepared_request.headers.pop("Authorization", None)
        self._authorize(prepared_request)


class Web:
    """Sessions, one per thread, that keep their connections. All of `headers` (in small letters) go everywhere, but
    for `authorization`: it, or the name and password in `url` in its place, goes to that scheme, host and port only."""

    def __init__(self, headers: Mapping[str, str], url: str):
        self._headers = {"accept-encoding": "identity", **headers}
        self._authorization, self._origin = self._headers.pop("authorization", ""), origin(url)
        self._token = bool(self._authorization)
        parts = urllib.parse.urlsplit(url)
        if parts.username is not None:
            both = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._authorization = f"Basic {base64.b64encode(both.encode()).decode()}"
        self._local = threading.local()

    def get(
        self, url: str, headers: dict[str, str] | None = None, method: str = "GET", away: bool = True, hops: int = 30
    ) -> requests.Response:
        """One request, its body not yet read. Redirects are followed; to another host only if `away`.

        Raises:
            Temporary, SourceError: anything but success.
        """
        try:
            host, shown = host_of(url), without_userinfo(url)
        except ValueError as error:
            raise SourceError(f"a server leads to what is no address ({_reason(error)}). {_REMEDY}") from error
        try:
            response = self._session().request(
                method, url, headers={**self._headers, **(headers or {})}, auth=self._authorize,
                stream=True, timeout=(min(timeout(), 20), timeout()), allow_redirects=away,
            )  # fmt: skip
        except requests.exceptions.SSLError as error:
            raise SourceError(
                f"{host} cannot be trusted: its TLS certificate is refused ({_reason(error)}). Is this machine's clock "
                "right? Behind a proxy that opens TLS, set REQUESTS_CA_BUNDLE to the file with the proxy's certificate"
            ) from error
        except requests.exceptions.ProxyError as error:
            raise Temporary(
                f"the proxy to {host} cannot be used ({_reason(error)}). Check HTTPS_PROXY and HTTP_PROXY"
            ) from error
        except requests.exceptions.Timeout as error:
            raise Temporary(f"{host} did not answer within {timeout():g} s. {_REMEDY}") from error
        except requests.exceptions.ConnectionError as error:
            raise Temporary(f"{host} cannot be reached ({_reason(error)}). {_REMEDY}") from error
        except requests.exceptions.TooManyRedirects as error:
            raise SourceError(f"{shown} leads in a circle: it redirects more than 30 times. {_REMEDY}") from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise SourceError(f"{shown} cannot be asked for ({_reason(error)}). Check the address") from error
        if response.is_redirect:
            try:
                target = urllib.parse.urljoin(url, response.headers["Location"])
                stays = origin(target) == origin(url)
            except ValueError as error:
                response.close()
                raise SourceError(f"{shown} leads to what is no address ({_reason(error)}). {_REMEDY}") from error
            if stays and hops:
                response.close()
                return self.get(target, headers, method, away, hops - 1)
            response.headers["Location"] = target
        if response.status_code >= 400:
            with contextlib.closing(response):
                raise self._refused(response, url)
        return response

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = _Session(self._authorize)
        return self._local.session

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """An `auth` of our own, so that no password of a ~/.netrc is sent."""
        if self._authorization and origin(request.url or "") == self._origin:
            request.headers["Authorization"] = self._authorization
        return request

    def _refused(self, response: requests.Response, asked: str) -> SourceError:
        status, host = response.status_code, host_of(response.url)
        code = response.headers.get("X-Error-Code", "")
        what = urllib.parse.unquote(re.sub(r"/(resolve|tree|revision)/", " at ", urllib.parse.urlsplit(asked).path))
        what = what.removeprefix("/api/models").strip("/")
        if status in TEMPORARY:
            busy = "asks for fewer requests" if status == 429 else "has a fault of its own"
            return Temporary(
                f"{host} {busy} (HTTP {status}) for {what}. Run the same command again later: it goes on where it "
                "stopped",
                _retry_after(response),
            )

        def refused(message: str) -> Refused:
            return Refused(message, status, code)

        if code == "GatedRepo":
            repository = "/".join(urllib.parse.urlsplit(asked).path.removeprefix("/api/models").split("/")[1:3])
            page = f"{HUB}/{repository}"
            has = "the account of your token has not been let in" if self._token else "no token was given"
            return refused(
                f"{repository} is gated, and {has} (HTTP {status}). Accept its terms on {page}, then set HF_TOKEN to "
                f"a token of that account ({HUB}/settings/tokens)"
            )
        if status == 401 and self._authorization.startswith("Basic") and origin(asked) == self._origin:
            return refused(
                f"{host} refuses the name and password in its address (HTTP 401) for {what}. Check "
                "HF_ENDPOINT or --from"
            )
        if status == 401 and self._token:
            return refused(
                f"{host} refuses the token (HTTP 401) for {what}: it is wrong or expired, or there is no such "
                f"repository. Set HF_TOKEN to a new one ({HUB}/settings/tokens), or unset it: public models need none"
            )
        if status in (401, 404, 410):
            return refused(
                f"{host} has no {what} (HTTP {status}{f', {code}' if code else ''}). Check the source and the name; a "
                "private or gated repository needs a token in HF_TOKEN"
            )
        return refused(f"{host} refuses {what} (HTTP {status} {response.reason}). {_REMEDY}")


class Body:
    """The bytes of an answer; `read(n)` gives at most n of them, none at the end. With `decode`, those that a server
    has compressed, though nobody asked it to, are what they were before."""

    def __init__(self, response: requests.Response, decode: bool = False):
        self._response, self._decode = response, decode
        self._host = host_of(response.url)

    def read(self, length: int) -> bytes:
        """
        Raises:
            Temporary: the connection broke off, or stalled.
            SourceError: what it was compressed to is damaged.
        """
        try:
            return self._response.raw.read(length, decode_content=self._decode)
        except urllib3.exceptions.DecodeError as error:
            raise SourceError(
                f"{self._host} sends what cannot be decompressed ({_reason(error)}). {_REMEDY}"
            ) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Temporary(f"{self._host} stalled: no byte for {timeout():g} s. {_REMEDY}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Temporary(f"the connection to {self._host} broke off ({_reason(error)}). {_REMEDY}") from error

    def whole(self, limit: int) -> bytes:
        """All of it.

        Raises:
            Temporary: as `read`.
            SourceError: as `read`; it has more than `limit` bytes.
        """
        content = bytearray()
        while piece := self.read(1 << 16):
            content += piece
            if len(content) > limit:
                raise SourceError(f"{self._host} answers with more than {limit / 1e6:.0f} MB of text. {_REMEDY}")
        return bytes(content)

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()


def length_of(response: requests.Response) -> int | None:
    """Bytes of the body, where the server tells."""
    told = response.headers.get("Content-Length", "")
    return int(told) if re.fullmatch("[0-9]{1,18}", told) else None


def check_range(response: requests.Response, name: str, start: int, end: int, total: int) -> None:
    """Is the answer bytes [start, end) of the file `name` of `total` bytes?

    Raises:
        NoRanges: it is the whole file, and a part was asked for.
        WrongContent: the file at the source has another length.
    """
    url = f"{host_of(response.url)}, asked for {name},"
    if response.status_code == 206:
        told = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]+|\*)", response.headers.get("Content-Range", ""))
        if not told or int(told[1]) != start or int(told[2]) != end - 1 or told[3] not in (str(total), "*"):
            response.close()
            raise WrongContent(
                f"{url} answers with {response.headers.get('Content-Range') or 'no range'!r}; expected bytes "
                f"{start}-{end - 1} of {total}. That is not the published file. Give another source"
            )
        return
    length = length_of(response)
    if length not in (None, total):
        response.close()
        raise WrongContent(
            f"{url} sends {length} bytes; {total} were published. It is not that file, or the server is damaged: give "
            "another source"
        )
    if (start, end) != (0, total):
        response.close()
        raise NoRanges(f"{url} cannot send a part of a file")


_REMEDY = (
    "Check the network, or give another source: HF_ENDPOINT=URL of a mirror, or --from FOLDER. What has arrived is "
    "kept: the same command goes on from there"
)


def _reason(error: BaseException) -> str:
    """The innermost cause, in a few words: libraries nest theirs."""
    seen: list[BaseException] = []
    current: Any = error
    while isinstance(current, BaseException) and current not in seen:
        seen.append(current)
        inner = getattr(current, "reason", None)
        arguments = [a for a in current.args if isinstance(a, BaseException)]
        current = inner if isinstance(inner, BaseException) else arguments[0] if arguments else current.__cause__
    text = str(seen[-1]).strip() or type(seen[-1]).__name__
    return re.sub(r"<[^>]*object at 0x[^>]*>[:,]? ?|(?<=://)[^/?#\s]*@", "", text)[:160]


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server wants to wait: Retry-After in either form, or the hub's own RateLimit header."""
    if value := response.headers.get("Retry-After"):
        with contextlib.suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
            return urllib3.util.Retry().parse_retry_after(value)
    limit = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", "")) if response.status_code == 429 else None
    return float(limit[1]) if limit else None
