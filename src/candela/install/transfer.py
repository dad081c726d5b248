"""One file from a source to its place: several parts at once, resumed after a kill or a reboot, checked, moved in.

Beside the target lie `NAME.candela-part`, as long as the whole file, and `NAME.candela-part.journal`: which segments
of it have arrived, each with a CRC-32. A segment is one request, so a kill costs at most the segments under way:
4 x 7.5 MiB. What a journal says is believed only after the CRC was compared: a machine that lost power may have kept
the journal and not the data.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from candela.errors import InstallError, NoSpace, SourceError, WrongContent
from candela.install import http
from candela.install.http import NoRanges, Temporary, wait_for
from candela.install.sources import Remote, Source

SEGMENT = 15 << 19  # bytes: 7.5 MiB
BLOCK = 1 << 18  # bytes read from the network, and for hashing, at a time: half of what a core keeps beside it
AHEAD = 16  # segments that may be under way before the hashing: otherwise it gets too little of a busy processor
STRIDE = 64  # a byte of so many is in a segment's CRC
PART, JOURNAL = ".candela-part", ".candela-part.journal"


def part_of(target: Path) -> Path:
    return target.with_name(target.name + PART)


def journal_of(target: Path) -> Path:
    return target.with_name(target.name + JOURNAL)


def arrived(remote: Remote, target: Path) -> int:
    """Bytes of `remote` that an earlier run has left beside `target`, as its journal says."""
    segments = Segments(remote.bytes)
    return sum(segments.length(index) for index in _read_journal(journal_of(target), remote))


def arrived_bytes(target: Path) -> int:
    """The same without knowing what it is: what its journal counts."""
    try:
        first, *lines = journal_of(target).read_text("ascii").split("\n")
        total = int(json.loads(first)["bytes"])
        done = {int(line.split()[0]) for line in lines[:-1]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0
    return min(total, len(done) * SEGMENT)


def fetch(source: Source, remote: Remote, target: Path, report: Callable[[int], None], replace: bool = False) -> str:
    """Brings `remote` to `target`, whose folder is there. -> its sha256. Only with `replace`, what is there may go.

    `report` is told how many bytes have come, those of earlier runs included (a negative number: they were bad).

    Raises:
        SourceError: the source cannot give it; what has arrived is kept for the next run.
        WrongContent: another checksum than published, and nothing is kept; or a strange answer.
        NoSpace: the disk is full; what has arrived is kept.
        InstallError: the file cannot be written.
    """
    part, journal = part_of(target), journal_of(target)
    try:
        transfer = _Transfer(source, remote, part, journal, report)
        try:
            digests = transfer.run()
        except SourceError:
            if not transfer.arrived:  # nothing to go on from
                remove_partial(target)
            raise
        if remote.digest and digests[remote.algorithm] != remote.digest:
            remove_partial(target)
            raise WrongContent(
                f"{remote.name} from {source.name} is damaged or another file: its {remote.algorithm} is "
                f"{digests[remote.algorithm]}; {remote.evidence} is {remote.digest}. Nothing of it was kept. Run the "
                "same command again; if that does not help, give another source"
            )
        if os.path.lexists(target) and not replace:
            raise InstallError(
                f"{target} was put there while it was downloaded, and is not overwritten. Run the same command again: "
                "it says whether it is the published file"
            )
        os.replace(part, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"the disk of {target.parent} is full: {remote.name} has {remote.bytes / 1e9:.2f} GB and did not fit. "
                "Free some space and run the same command again: it goes on where it stopped"
            ) from error
        raise InstallError(f"{target} cannot be written: {error.strerror or error}. Check the folder") from error
    journal.unlink(missing_ok=True)
    return digests["sha256"]


def remove_partial(target: Path) -> None:
    """Takes away what an unfinished download left."""
    part_of(target).unlink(missing_ok=True)
    journal_of(target).unlink(missing_ok=True)


def digest_of(path: Path, algorithms: set[str], report: Callable[[int], None] = lambda number: None) -> dict[str, str]:
    """Hashes a file: algorithm (sha256, md5, git-sha1) -> hexadecimal."""
    hashes = _hashes(algorithms, path.stat().st_size)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            for one in hashes.values():
                one.update(block)
            report(len(block))
    return {name: one.hexdigest() for name, one in hashes.items()}


def _hashes(algorithms: set[str], length: int) -> dict[str, Any]:
    """git-sha1 is that of a git blob: of "blob LENGTH", a zero byte, and the content."""
    make = {
        "sha256": hashlib.sha256,
        "md5": lambda: hashlib.md5(usedforsecurity=False),
        "git-sha1": lambda: hashlib.sha1(f"blob {length}\0".encode(), usedforsecurity=False),
    }
    return {name: make[name]() for name in algorithms}


def _marks(block: bytes, position: int, crc: int) -> int:
    """The CRC goes on over a byte in 64, counted from the file's beginning. A power cut loses whole blocks of a disk,
    512 bytes at least; single bits are the whole file's checksum's business, and a CRC of all costs half as much."""
    return zlib.crc32(block[-position % STRIDE :: STRIDE], crc)


class Segments:
    """How a file is cut."""

    def __init__(self, total: int):
        self.total = total
        self.count = max(1, -(-total // SEGMENT))

    def length(self, index: int) -> int:
        return min(SEGMENT, self.total - index * SEGMENT)


def _read_journal(path: Path, remote: Remote) -> dict[int, int]:
    """Segment -> CRC-32 of all that have arrived; nothing if the journal is that of another content."""
    try:
        first, *lines = path.read_text("ascii").split("\n")
        if json.loads(first) != _identity(remote):
            return {}
    except (OSError, ValueError):
        return {}
    count = Segments(remote.bytes).count
    entries = [line.split() for line in lines[:-1]]  # behind the last line end: nothing, or a line cut by a kill
    known = [(int(e[0]), int(e[1])) for e in entries if len(e) == 2 and e[0].isdigit() and e[1].isdigit()]
    return {index: crc for index, crc in known if index < count}


def _identity(remote: Remote) -> dict[str, Any]:
    content = remote.digest or f"{remote.origin} {remote.version}"
    return {"bytes": remote.bytes, "content": content, "segment": SEGMENT}


class _Transfer:
    """Workers write segments wherever they belong; this thread hashes behind them, in order."""

    def __init__(self, source: Source, remote: Remote, part: Path, journal: Path, report: Callable[[int], None]):
        self.source, self.remote, self.report = source, remote, report
        self.segments = Segments(remote.bytes)
        self.arrived = _read_journal(journal, remote) if part.is_file() else {}  # segment -> CRC-32
        self.doubtful = set(self.arrived)  # from an earlier run: to be compared with their CRC
        self.pending = deque(index for index in range(self.segments.count) if index not in self.arrived)
        self.changed = threading.Condition()
        self.hashed = 0  # segments
        self.failure: BaseException | None = None
        self.over = False
        self.file = _PartFile(part, remote.bytes)
        self.journal = open(journal, "a" if self.arrived else "w", encoding="ascii", buffering=1)  # noqa: SIM115
        if not self.arrived:
            self.journal.write(json.dumps(_identity(remote)) + "\n")
        report(sum(map(self.segments.length, self.arrived)))

    def run(self) -> dict[str, str]:
        """-> digests of the whole file."""
        try:
            try:
                return self._with_workers(min(self.source.connections, self.segments.count), self._work)
            except NoRanges:
                self.source.notice("the source cannot send parts of a file: one connection, from the beginning")
                self.failure = None
                self.pending = deque(index for index in range(self.segments.count) if index not in self.arrived)
                return self._with_workers(1, self._stream)
        finally:
            self.file.close()
            self.journal.close()

    def _with_workers(self, number: int, work: Callable[[], None]) -> dict[str, str]:
        self.over = False
        self.source.closing.clear()
        workers = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for _ in range(number)]
        for worker in workers:
            worker.start()
        try:
            return self._hash()
        finally:
            with self.changed:
                self.over = True
                self.changed.notify_all()
            self.source.closing.set()
            if sys.exc_info()[0] is not KeyboardInterrupt:  # then the process ends; a stalled read would hold it up
                for worker in workers:
                    worker.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self.changed:
                self.failure = self.failure or error
                self.changed.notify_all()

    def _hash(self) -> dict[str, str]:
        hashes = _hashes({"sha256", self.remote.algorithm} - {""}, self.remote.bytes)
        for index in range(self.segments.count):
            while True:
                with self.changed:
                    while index not in self.arrived and not self.failure:
                        self.changed.wait()
                    if self.failure:
                        raise self.failure
                trial = {name: one.copy() for name, one in hashes.items()}
                if self._read(index, trial.values(), compare=index in self.doubtful):
                    hashes = trial
                    with self.changed:
                        self.hashed = index + 1
                        self.doubtful.discard(index)
                        self.changed.notify_all()
                    break
                self.report(-self.segments.length(index))
                with self.changed:
                    self.doubtful.discard(index)
                    del self.arrived[index]
                    self.pending.appendleft(index)  # the hashing waits for it
                    self.changed.notify_all()
        return {name: one.hexdigest() for name, one in hashes.items()}

    def _read(self, index: int, hashes: Any, compare: bool) -> bool:
        """Hashes a segment. -> is it the one that the journal means?"""
        position, end = index * SEGMENT, index * SEGMENT + self.segments.length(index)
        crc = 0
        while position < end:
            block = self.file.read(min(BLOCK, end - position), position)
            if compare:
                crc = _marks(block, position, crc)
            position += len(block)
            for one in hashes:
                one.update(block)
            if not block:
                return False  # shorter than the journal says
        return not compare or crc == self.arrived[index]

    def _work(self) -> None:
        """One connection: a segment after the other, as long as there are any."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._next_is_due() or self.over or self.failure)
                if self.over or self.failure:
                    return
                index = self.pending.popleft()
            self._finished(index, self._segment(index))

    def _next_is_due(self) -> bool:
        """There is one, and the hashing is not far behind it; what an earlier run left may take it a while."""
        return bool(self.pending) and (bool(self.doubtful) or self.pending[0] < self.hashed + AHEAD)

    def _finished(self, index: int, crc: int) -> None:
        with self.changed:
            self.journal.write(f"{index} {crc}\n")
            self.arrived[index] = crc
            self.changed.notify_all()

    def _segment(self, index: int) -> int:
        """Downloads one segment, in as many tries as it takes. -> its CRC-32"""
        position, end = index * SEGMENT, index * SEGMENT + self.segments.length(index)
        crc = failures = 0
        while position < end:
            before = position
            try:
                with self.source.open(self.remote, position, end) as body:
                    while position < end:
                        block = body.read(min(BLOCK, end - position))
                        if not block:
                            raise Temporary(
                                f"{self.source.name} broke off: {self.remote.name} ended {end - position} bytes early. "
                                "What has arrived is kept: the same command goes on from there"
                            )
                        if self.over:
                            raise Temporary("the download was stopped")
                        self.file.write(block, position)
                        crc = _marks(block, position, crc)
                        position += len(block)
                        self.report(len(block))
            except Temporary as error:
                failures = 0 if position - before >= BLOCK else failures + 1
                if failures > len(http.BACKOFF):
                    raise
                wait_for(error, http.BACKOFF[max(0, failures - 1)], self.source.closing, self.source.notice)
        return crc

    def _stream(self) -> None:
        """Everything in one answer, from a server that cannot send parts; what is here already is passed over."""
        failures = 0
        while True:
            with self.changed:  # what turns out damaged comes back
                self.changed.wait_for(lambda: self.pending or self.over or self.failure)
                if self.over or self.failure:
                    return
            try:
                with self.source.open(self.remote, 0, self.remote.bytes) as body:
                    for index in range(self.segments.count):
                        # Asked once: it may turn out damaged while it passes by, and then half of it was not written.
                        with self.changed:
                            wanted = index in self.pending
                        crc = self._from_stream(body, index, wanted)
                        if wanted:
                            with self.changed:
                                self.pending.remove(index)
                            self._finished(index, crc)
                            failures = 0
            except Temporary as error:
                failures += 1
                if failures > len(http.BACKOFF):
                    raise
                wait_for(error, http.BACKOFF[failures - 1], self.source.closing, self.source.notice)

    def _from_stream(self, body: Any, index: int, wanted: bool) -> int:
        position, end = index * SEGMENT, index * SEGMENT + self.segments.length(index)
        crc = 0
        while position < end:
            block = body.read(min(BLOCK, end - position))
            if not block or self.over:
                raise Temporary(f"{self.source.name} broke off: {self.remote.name} ended after {position} bytes")
            if wanted:
                self.file.write(block, position)
                self.report(len(block))
            crc = _marks(block, position, crc)
            position += len(block)
        return crc


class _PartFile:
    """The file that grows: written and read anywhere, from several threads."""

    def __init__(self, path: Path, length: int):
        self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._file.truncate(length)

    def write(self, data: bytes, position: int) -> None:
        view = memoryview(data)
        while view:
            with self._lock:  # the system has one of its own for a file, and its waiting takes a core's time
                if hasattr(os, "pwrite"):
                    written = os.pwrite(self._file.fileno(), view, position)
                else:  # Windows
                    self._file.seek(position)
                    written = self._file.write(view)
            view, position = view[written:], position + written

    def read(self, length: int, position: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), length, position)
        with self._lock:
            self._file.seek(position)
            return self._file.read(length)

    def close(self) -> None:
        self._file.close()
