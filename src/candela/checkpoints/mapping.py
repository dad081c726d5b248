"""Weights that stay in their file: mapped into memory, and out of harm's way when the file is changed.

A mapped file costs no time to load, and its memory is the system's own cache of it, which processes share. But who
reads from a page that the file no longer has is ended by the system (SIGBUS). So a file is mapped only where Linux
grants a lease on it (fcntl(2), F_SETLEASE): whoever opens it for writing then waits, at most `lease-break-time` (45 s),
until its pages have been copied and the copy put in their place, at the same addresses. No lease is granted on
another user's files, most network drives and other systems; there, weights are read.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import signal
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints.headers.header import open_regular

PERIOD = 0.5  # seconds between two looks at the leases; a look takes a microsecond for each
PATIENCE = Path("/proc/sys/fs/lease-break-time")  # seconds
PIECE = 1 << 26  # bytes that are copied at a time: so much more memory than the file's is needed, where all is counted
MAYMOVE, FIXED = 1, 2  # of mremap(2)
FAILED = ctypes.c_void_p(-1).value


@dataclass
class _Lease:
    """`asked`: when it was first seen that somebody wants to write, in seconds of the monotonic clock."""

    memory: weakref.ref[mmap.mmap]
    asked: float | None = None


_lock = threading.Lock()
_leased: dict[int, _Lease] = {}  # by the descriptor that holds the lease
_watching = False


def mapped(path: Path) -> torch.Tensor | None:
    """The bytes of a file, uint8 [size], private to this process when they are written to; None where they cannot be
    mapped safely.

    Raises:
        DamagedFile: it is no regular file.
    """
    with open_regular(path) as file:
        held = os.dup(file.fileno())  # closed, and the lease given back, when the last tensor of it is gone
    try:
        fcntl.fcntl(held, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default; SIGIO would end the process
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        memory = mmap.mmap(held, 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        os.close(held)
        return None
    weakref.finalize(memory, _give_back, held)
    try:
        with _lock:
            _leased[held] = _Lease(weakref.ref(memory))
            _watch()
    except RuntimeError:  # no room for another thread, and a lease that nobody looks after protects nothing
        return None
    return torch.frombuffer(memory, dtype=torch.uint8)


def let_go(values: torch.Tensor) -> None:
    """Gives back the memory of mapped values, flat, that nobody reads again: once a writer was served they are no
    longer in the file."""
    begin, end = values.data_ptr(), values.data_ptr() + values.nbytes
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:  # the pages at the ends have neighbours' values too
        _libc().madvise(first, last - first, mmap.MADV_DONTNEED)


def _give_back(held: int) -> None:
    _leased.pop(held, None)
    os.close(held)


def _watch() -> None:
    global _watching
    if not _watching:
        threading.Thread(target=_look_after, name="candela-leases", daemon=True).start()
        _watching = True


def _look_after() -> None:
    global _watching
    try:
        while True:
            time.sleep(PERIOD)
            for held, lease in list(_leased.items()):
                with contextlib.suppress(MemoryError, OSError):  # there may be room at the next look
                    _serve(held, lease)
            with _lock:
                if not _leased:
                    _watching = False
                    return
    except BaseException:
        with _lock:
            _watching = False  # the next lease starts another
        raise


def _serve(held: int, lease: _Lease) -> None:
    """Gives the lease back when somebody waits for it, once the memory needs the file no longer.

    Raises:
        MemoryError: as `_detach`; the lease is held on to.
        OSError: the descriptor has been closed meanwhile.
    """
    memory = lease.memory()
    if memory is None or fcntl.fcntl(held, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
        return
    lease.asked = lease.asked or time.monotonic()
    if time.monotonic() - lease.asked < float(PATIENCE.read_text()) - 1:
        _detach(memory)
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    _leased.pop(held, None)  # later the system has let the writer go on, and to copy would be to read a changed file


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = [pointer, size, number, number, number, ctypes.c_long], pointer
    libc.mremap.argtypes, libc.mremap.restype = [pointer, size, size, number, pointer], pointer
    libc.munmap.argtypes, libc.munmap.restype = [pointer, size], number
    libc.madvise.argtypes, libc.madvise.restype = [pointer, size, number], number
    libc.memcpy.argtypes, libc.memcpy.restype = [pointer, pointer, size], pointer
    return libc


def _detach(memory: mmap.mmap) -> None:
    """Puts a copy of the pages where they are, piece by piece, each in one step: every tensor goes on as if nothing had
    been. To do it again does no harm.

    Raises:
        MemoryError: there is no room for the copy.
    """
    libc, place = _libc(), torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    for begin in range(0, len(memory), PIECE):
        length = min(PIECE, len(memory) - begin)
        size = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        # Not Python's own mmap: it would unmap the address that the copy has moved away from.
        copy = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if copy == FAILED:
            raise MemoryError(f"{size} bytes, to copy weights whose file is about to be written")
        libc.memcpy(copy, place + begin, length)
        if libc.mremap(copy, size, size, MAYMOVE | FIXED, place + begin) == FAILED:
            libc.munmap(copy, size)
            raise MemoryError(f"{size} bytes, to put the copy of weights in their place")
