"""How the hub answers one request, rightly or with a fault; see `tests.install.hub`."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import secrets
import socket
import ssl
import struct
import time
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.install.blobs import Blob, entries

if TYPE_CHECKING:
    from tests.install.hub import Hub

GOOD, STRANGER = "hf_good0token", "hf_stranger0token"  # of who may see gated repositories, and who asked in vain
COMPRESSED_FROM = 1000  # bytes; the hub's CloudFront compresses text for whoever accepts it, and then knows no Range


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None):
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


class _Ended(Exception):
    """The connection is to be closed now."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    # --- connections --------------------------------------------------------------------------

    def setup(self) -> None:
        super().setup()
        hub = self.server.hub
        with hub.lock:
            hub.connections.add(self.connection)
            hub.most_connections = max(hub.most_connections, len(hub.connections))

    def finish(self) -> None:
        with self.server.hub.lock:
            self.server.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        self.name, self.fault = "", None
        try:
            self._answer(hub)
        except _Refused as refused:
            self._refuse(refused)
        except (_Ended, ConnectionError):
            self.close_connection = True

    do_HEAD = do_GET

    def _end(self, reset: bool) -> None:
        if reset:  # RST in place of FIN, and at once
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        raise _Ended

    # --- what is asked ------------------------------------------------------------------------

    def _answer(self, hub: Hub) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        host, token = self.headers.get("Host", ""), self.headers.get("Authorization")
        if token:
            with hub.lock:
                hub.authorizations[host.partition(":")[0]].append(token)
        match parts:
            case ["api", "models", owner, repository, *rest]:
                self._begin(hub, f"api/{owner}/{repository}/{'/'.join(rest)}")
                self._api(hub, f"{owner}/{repository}", rest, parse_qs(url.query))
            case ["cdn", signature]:
                name, blob, until = hub.links.get(signature, ("cdn/unknown", None, 0.0))
                self._begin(hub, name)
                if token:
                    hub.violations.append(f"{name}: Authorization was sent to {host}")
                if blob is None or time.time() > until:
                    raise _Refused(403, message="Request has expired")
                self._body(blob, blob.sha256)
            case ["plain", *rest]:
                self._begin(hub, f"plain/{'/'.join(rest)}")
                self._plain(hub, hub.root.joinpath(*rest))
            case [owner, repository, "resolve", revision, *rest]:
                self._begin(hub, f"resolve/{owner}/{repository}/{'/'.join(rest)}")
                self._resolve(hub, f"{owner}/{repository}", revision, "/".join(rest))
            case _:
                raise _Refused(404, message="Page not found")

    def _begin(self, hub: Hub, name: str) -> None:
        """Counts the request, and lets it fail as a whole if it shall."""
        self.name = name
        with hub.lock:
            hub.requests.append((self.command, name, self.headers.get("Range", "")))
        self.fault = fault = hub.take_fault(name)
        if fault and fault.kind == "status":
            raise _Refused(fault.status, fault.code, fault.message, fault.headers)
        if fault and fault.kind == "redirect":
            raise _Refused(302, headers={"Location": fault.location or self.path})
        if fault and fault.after < 0:
            self._end(fault.kind == "reset")

    def _tree(self, hub: Hub, repository: str, revision: str, gate: bool) -> tuple[str, dict[str, Blob]]:
        """Whether the asker may, and the files -> commit, path -> file."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (GOOD, STRANGER):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        if repository in hub.renamed:
            raise _Refused(307, headers={"Location": self.path.replace(repository, hub.renamed[repository], 1)})
        if repository not in hub.main:  # the hub tells nobody unknown whether it is private or absent
            if not token:
                raise _Refused(401, message="Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        commit = hub.main[repository] if revision == "main" else revision
        if (repository, commit) not in hub.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if gate and repository in hub.gated and token != GOOD:
            restricted = f"Access to model {repository} is restricted"
            if not token:
                message = f"{restricted}. You must have access to it and be authenticated to access it. Please log in."
                raise _Refused(401, "GatedRepo", message)
            raise _Refused(
                403, "GatedRepo", f"{restricted} and you are not in the authorized list. Visit "
                f"https://huggingface.co/{repository} to ask for access.",
            )  # fmt: skip
        return commit, hub.commits[repository, commit]

    def _api(self, hub: Hub, repository: str, rest: list[str], query: dict[str, list[str]]) -> None:
        """Of a gated repository too: the hub lists it to everybody."""
        revision = rest[1] if len(rest) > 1 else "main"
        commit, tree = self._tree(hub, repository, revision, gate=False)
        if not rest or rest[0] == "revision":
            gated = "manual" if repository in hub.gated else False
            siblings = [{"rfilename": path} for path in tree]
            owner = repository.partition("/")[0]
            self._json({"_id": commit[:24], "id": repository, "modelId": repository, "author": owner, "sha": commit,
                        "lastModified": "2026-01-01T00:00:00.000Z", "private": False, "gated": gated, "disabled": False,
                        "tags": [], "downloads": 0, "siblings": siblings})  # fmt: skip
        elif rest[0] == "tree":
            listed = list(entries(tree, query.get("recursive", [""])[0].lower() == "true"))
            begin = int(query.get("cursor", ["0"])[0])
            end, headers = begin + hub.page, {}
            if end < len(listed):
                following = f"{hub.url}{urlsplit(self.path).path}?recursive=true&cursor={end}"
                headers["Link"] = f'<{following}>; rel="next"'
            self._json(listed[begin:end], headers)
        elif rest[0] == "xet-read-token" and hub.cas:
            self._json({}, {"X-Xet-Cas-Url": hub.cas, "X-Xet-Access-Token": "xet_good0token",
                            "X-Xet-Token-Expiration": str(int(time.time()) + 3600)})  # fmt: skip
        else:
            raise _Refused(404, message="Page not found")

    def _resolve(self, hub: Hub, repository: str, revision: str, path: str) -> None:
        commit, tree = self._tree(hub, repository, revision, gate=True)
        if path not in tree:
            raise _Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        blob = tree[path]
        if not blob.lfs:
            self._body(blob, blob.sha1, {"X-Repo-Commit": commit})
            return
        signature, until = secrets.token_hex(16), time.time() + hub.expiry
        hub.links[signature] = (f"cdn/{repository}/{path}", blob, until)
        headers = {
            "Location": f"{hub.cdn}/cdn/{signature}?expires={until:.3f}&name={quote(path)}",
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(blob.bytes),
            "X-Linked-ETag": f'"{blob.sha256}"',
            "Accept-Ranges": "bytes",
        }
        if blob.sha256 in hub.xet:
            headers["X-Xet-Hash"] = hub.xet[blob.sha256]
            headers["Link"] = f'<{hub.url}/api/models/{repository}/xet-read-token/{commit}>; rel="xet-auth"'
        raise _Refused(302, headers=headers)

    def _plain(self, hub: Hub, path: Path) -> None:
        """As nginx serves a folder: the file as it is now, an ETag of its time and length."""
        if not path.resolve().is_relative_to(hub.root.resolve()) or not path.is_file():
            raise _Refused(404, message="Not Found")
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            blob = Blob(file.fileno(), stat.st_size, "", "", True)
            modified = {"Last-Modified": formatdate(stat.st_mtime, usegmt=True)}
            self._body(blob, f"{stat.st_mtime_ns // 1000:x}-{stat.st_size:x}", modified)

    # --- what is answered ---------------------------------------------------------------------

    def _json(self, value: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})})
        self._write(content)

    def _refuse(self, refused: _Refused) -> None:
        headers = dict(refused.headers)
        if refused.code:
            headers["X-Error-Code"] = refused.code
        if refused.message:
            headers["X-Error-Message"] = refused.message
        self._json({"error": refused.message or http.HTTPStatus(refused.status).phrase}, headers, refused.status)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        if self.command == "GET":
            self.connection.sendall(content)
            self._count(len(content))

    def _count(self, number: int) -> None:
        with self.server.hub.lock:
            self.server.hub.sent[self.name] += number

    def _body(self, blob: Blob, etag: str, headers: dict[str, str] | None = None) -> None:
        """A file, or the part of it that Range asks for."""
        hub, fault = self.server.hub, self.fault
        headers = {"ETag": f'"{etag}"', "Content-Type": "application/octet-stream", **(headers or {})}
        if not blob.lfs and blob.bytes > COMPRESSED_FROM and "gzip" in self.headers.get("Accept-Encoding", ""):
            self._compressed(os.pread(blob.descriptor, blob.bytes, 0), headers)
            return
        total = blob.bytes + (fault.by if fault and fault.kind == "total" else 0)
        part = self._range(total, etag) if hub.ranges else None
        start, end = part or (0, total)
        if hub.ranges:
            headers["Accept-Ranges"] = "bytes"
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        too_many = fault.by if fault and fault.kind == "length" else 0
        headers["Content-Length"] = str(end - start + too_many)
        self._head(206 if part else 200, headers)
        if self.command == "GET":
            self._send(blob.descriptor, start, min(end, blob.bytes) - start)
            if end > blob.bytes or too_many:
                raise _Ended

    def _compressed(self, content: bytes, headers: dict[str, str]) -> None:
        self._head(200, headers | {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
        content = gzip.compress(content)
        self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))

    def _range(self, total: int, etag: str) -> tuple[int, int] | None:
        """Of the one range that is asked for -> first byte, byte after the last."""
        asked = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if not asked.startswith("bytes=") or "," in asked or (condition and condition.strip('"') != etag):
            return None
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, total - int(last))
        end = min(total, int(last) + 1) if first and last else total
        if start >= end:
            raise _Refused(416, headers={"Content-Range": f"bytes */{total}"})
        return start, end

    def _send(self, descriptor: int, start: int, number: int) -> None:
        """Bytes of a file as they are on the disk, with what goes wrong at one of them."""
        fault = self.fault
        if fault is None or fault.kind not in ("reset", "truncate", "flip", "stall") or fault.after >= number:
            self._copy(descriptor, start, number)
            return
        at = fault.after
        self._copy(descriptor, start, at)
        if fault.kind in ("reset", "truncate"):
            self._end(fault.kind == "reset")
        if fault.kind == "stall":
            self.server.hub.closing.wait(fault.seconds)
        if fault.kind == "flip":
            (byte,) = os.pread(descriptor, 1, start + at)
            self._write(bytes([byte ^ 1]))
            at += 1
        self._copy(descriptor, start + at, number - at)

    def _copy(self, descriptor: int, start: int, number: int) -> None:
        hub, end = self.server.hub, start + number
        while start < end:
            step = min(end - start, 1 << 16 if hub.speed else 1 << 23)
            hub.wait_for_turn(step)
            if isinstance(self.connection, ssl.SSLSocket):
                done = self.connection.send(os.pread(descriptor, step, start))
            else:
                done = os.sendfile(self.connection.fileno(), descriptor, start, step)
            if done == 0 or hub.closing.is_set():  # the file was cut meanwhile
                raise _Ended
            self._count(done)
            start += done
