"""A server that behaves like the Hugging Face hub: `python -m tests.install.hub ROOT [--port N]`, or `Hub(ROOT)`.

Serves ROOT/<owner>/<name>/<path> as the hub does (API, resolve, signed links on another host name), ROOT/<path> as
/plain/<path> without a listing, and goes wrong on demand. Names under which requests are counted and faults are
matched: api/<owner>/<name>/<rest>, resolve/<owner>/<name>/<path>, cdn/<owner>/<name>/<path>, plain/<path>.

Files are kept open as they were when they were published. One that is written to in place is therefore damaged at the
source, against its listing; one that is replaced (`os.replace`) and published makes a new commit.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import random
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.install.answers import Handler, Server
from tests.install.blobs import Blob, read_blob

FOREVER = 1 << 30


@dataclass
class Fault:
    """Something that goes wrong with every answer whose name matches.

    Attributes:
        kind: status (`status`, `headers`, `code`, `message`), redirect (`location`), reset or truncate (the connection
            ends after `after` bytes of the body, hard or as if the body were complete; before any answer at -1), flip
            (of one bit, after `after` bytes), stall (no byte for `seconds` after `after` bytes), length (`by` too many
            in Content-Length), total (`by` too many in Content-Range's and a whole answer's length).
        match: pattern of names.
        times: how many answers, before it is over.
        chance: of happening to one that matches.
    """

    kind: str
    match: str = "*"
    times: int = FOREVER
    chance: float = 1.0
    after: int = 0
    seconds: float = 0
    by: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    location: str = ""


class Hub:
    """The server, in threads of this process. Everything may be set while it runs.

    Attributes:
        url: what HF_ENDPOINT becomes.
        faults: in order; the first that matches and is not over happens.
        gated: repositories that need a token with access.
        renamed: old repository -> new one.
        ranges: False: every Range is ignored, as by plain servers.
        speed: bytes of bodies per second, all together; 0 is as fast as it goes.
        expiry: seconds for which a signed link is good.
        page: entries in a page of the API's tree.
        xet: sha256 of a file -> its hash in the xet storage at `cas`, for clients that speak xet.
        sent: name -> bytes of body that went out. Use `bodies` for the files' alone.
        requests: (method, name, Range header) in order.
        most_connections: at one time.
        authorizations: host -> what was sent as Authorization.
        violations: what no client may do: send a token to the host of the signed links.
    """

    def __init__(self, root: Path, port: int = 0, certificate: tuple[Path, Path] | None = None):
        self.root = root
        self.faults: list[Fault] = []
        self.random = random.Random(1)  # for faults that happen by chance
        self.gated: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.ranges, self.speed, self.expiry, self.page = True, 0, 3600.0, 5
        self.xet: dict[str, str] = {}
        self.cas = ""
        self.sent: Counter[str] = Counter()
        self.requests: list[tuple[str, str, str]] = []
        self.most_connections = 0
        self.authorizations: dict[str, list[str]] = defaultdict(list)
        self.violations: list[str] = []

        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self.links: dict[str, tuple[str, Blob, float]] = {}  # signature -> name, file, time at which it is over
        self.main: dict[str, str] = {}
        self.commits: dict[tuple[str, str], dict[str, Blob]] = {}
        self._known: dict[tuple[int, ...], Blob] = {}
        self._free_at = 0.0
        self.publish()

        self._server = Server(("127.0.0.1", port), Handler)
        self._server.hub = self
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "https" if certificate else "http"
        self.port = self._server.server_address[1]
        self.url, self.cdn = f"{scheme}://127.0.0.1:{self.port}", f"{scheme}://localhost:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            open_now = list(self.connections)
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for blob in self._known.values():
            os.close(blob.descriptor)

    def publish(self) -> None:
        """Makes what lies below ROOT now the main revision of every repository. Earlier commits stay."""
        for folder in sorted(p for p in self.root.glob("[!.]*/[!.]*") if p.is_dir()):
            files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
            tree = {name: self._blob(path) for name, path in files.items()}
            commit = hashlib.sha1(json.dumps([(n, b.sha256) for n, b in tree.items()]).encode()).hexdigest()
            repository = folder.relative_to(self.root).as_posix()
            self.commits[repository, commit] = tree
            self.main[repository] = commit

    def _blob(self, path: Path) -> Blob:
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = read_blob(path)
        return self._known[key]

    def commit(self, repository: str) -> str:
        return self.main[repository]

    def fault(self, kind: str, match: str = "*", **details: Any) -> Fault:
        self.faults.append(Fault(kind, match, **details))
        return self.faults[-1]

    @property
    def bodies(self) -> int:
        """Bytes of files that went out."""
        with self.lock:
            return sum(number for name, number in self.sent.items() if not name.startswith("api/"))

    def asked(self, pattern: str) -> list[tuple[str, str, str]]:
        """The GET requests whose name matches."""
        with self.lock:
            return [r for r in self.requests if r[0] == "GET" and fnmatch.fnmatchcase(r[1], pattern)]

    def take_fault(self, name: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fnmatch.fnmatchcase(name, fault.match) and self.random.random() < fault.chance:
                    fault.times -= 1
                    return fault
        return None

    def wait_for_turn(self, number: int) -> None:
        """Until `number` more bytes keep to `speed`, whoever sends them."""
        if self.speed:
            with self.lock:
                begin = max(time.monotonic(), self._free_at)
                self._free_at = begin + number / self.speed
            self.closing.wait(max(0.0, begin - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--speed", type=float, default=0, help="bytes per second in total")
    arguments = parser.parse_args()
    with Hub(arguments.root, arguments.port) as hub:
        hub.speed = arguments.speed
        print(hub.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
