"""A xet storage on this machine, for hf-xet's own client: what it downloads from in place of the hub's.

hf-xet itself cuts a file into chunks and packs them (its upload, with a folder for a storage); this server answers its
client's downloads with them, by the open specification of the protocol (https://huggingface.co/docs/xet/api): which
chunks make up a file, and ranges of the packs ("xorbs").
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

XORB_FOOTER = b"XETBLOB"


@dataclass(frozen=True)
class Xorb:
    """A pack of chunks.

    Attributes:
        chunks: how many.
        packed, unpacked: bytes in the pack, without its footer; bytes of the file that they make up.
        first: the file's bytes that it begins with.
    """

    path: Path
    chunks: int
    packed: int
    unpacked: int
    first: bytes


def store(file: Path, storage: Path) -> str:
    """Packs `file` into the folder `storage`. -> its hash, by which xet knows it."""
    import hf_xet

    commit = hf_xet.XetSession().new_upload_commit(endpoint=f"local://{storage}")
    handle = commit.start_upload_file(str(file), sha256=hf_xet.SKIP_SHA256)
    commit.wait_to_finish()
    return str(handle.result().xet_info.hash)


def read_xorb(path: Path) -> Xorb:
    """Each chunk has a header of 8 bytes: version, packed length (3 bytes), compression, unpacked length (3 bytes)."""
    content = path.read_bytes()
    at = chunks = unpacked = 0
    while not content.startswith(XORB_FOOTER, at):
        at, unpacked = (
            at + 8 + int.from_bytes(content[at + 1 : at + 4], "little"),
            unpacked + int.from_bytes(content[at + 5 : at + 8], "little"),
        )
        chunks += 1
    if at < unpacked:
        raise ValueError(f"{path} is compressed; give a file of random bytes")
    return Xorb(path, chunks, at, unpacked, content[8 : 8 + 64])


class Storage:
    """The server, in threads of this process, of one file of random bytes.

    Attributes:
        sent: bytes of packs that went out.
        speed: of these, per second, all connections together; 0 is as fast as it goes.
        flip: a byte of the file's first pack of which a bit is sent wrong; -1: none.
        cut: after so many bytes of a pack the connection ends, once; -1: never.
    """

    def __init__(self, file: Path, storage: Path):
        self.hash = store(file, storage)
        found = [read_xorb(path) for path in (storage / "xet" / "xorbs" / "xorbs").glob("default.*[0-9a-f]")]
        content = file.read_bytes()
        self.xorbs = sorted(found, key=lambda xorb: content.find(xorb.first))
        if sum(xorb.unpacked for xorb in self.xorbs) != len(content):
            raise ValueError(f"{storage} has more than {file}, or less")
        self.speed, self.flip, self.cut, self.sent = 0.0, -1, -1, 0
        self.lock, self._free_at, self.asked = threading.Lock(), 0.0, Counter[str]()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.storage = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reconstruction(self, start: int, end: int) -> dict[str, Any] | None:
        """What makes up bytes [start, end) of the file; None beyond its end."""
        terms, where, at, offset = [], {}, 0, None
        for xorb in self.xorbs:
            if at < end and at + xorb.unpacked > start:
                offset = start - at if offset is None else offset
                name, chunks = xorb.path.name.removeprefix("default."), {"start": 0, "end": xorb.chunks}
                terms.append({"hash": name, "unpacked_length": xorb.unpacked, "range": chunks})
                place = {"start": 0, "end": xorb.packed - 1}
                where[name] = [{"range": chunks, "url": f"{self.url}/xorb/{name}", "url_range": place}]
            at += xorb.unpacked
        return {"offset_into_first_range": offset, "terms": terms, "fetch_info": where} if terms else None

    def wait_for_turn(self, number: int) -> None:
        if self.speed:
            with self.lock:
                begin = max(time.monotonic(), self._free_at)
                self._free_at = begin + number / self.speed
            time.sleep(max(0.0, begin - time.monotonic()))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        storage: Storage = self.server.storage  # type: ignore[attr-defined]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, 1 << 60)
        storage.asked[self.path.split("/")[1]] += 1
        try:
            if self.path == f"/v1/reconstructions/{storage.hash}":
                found = storage.reconstruction(start, end)
                self._answer(200 if found else 416, json.dumps(found).encode())
            elif self.path.startswith("/xorb/"):
                self._pack(storage, start, end)
            else:  # a client asks for version 2 first
                self._answer(404, b"{}")
        except ConnectionError:
            self.close_connection = True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pack(self, storage: Storage, start: int, end: int) -> None:
        xorb = next(x for x in storage.xorbs if x.path.name.endswith(self.path.removeprefix("/xorb/")))
        end = min(end, xorb.packed)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{xorb.path.stat().st_size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with xorb.path.open("rb") as file:
            file.seek(start)
            while start < end:
                block = bytearray(file.read(min(1 << 20, end - start)))
                if xorb is storage.xorbs[0] and start <= storage.flip < start + len(block):
                    block[storage.flip - start] ^= 1
                if 0 <= storage.cut < start + len(block):
                    storage.cut = -1
                    raise ConnectionError
                storage.wait_for_turn(len(block))
                self.wfile.write(block)
                with storage.lock:
                    storage.sent += len(block)
                start += len(block)
