"""One installer at a time in a folder. The lock goes with the process that holds it, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from candela.errors import InstallError

NAME = ".candela-install.lock"


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds `folder`; `waiting` is called once if somebody else has it.

    Raises:
        InstallError: nothing can be written there.
    """
    path = folder / NAME
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise InstallError(
            f"{folder} cannot be written ({error.strerror or error}). Install as its owner, or choose another ComfyUI"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps an open file; the next installer takes it away
            path.unlink()
        lock.release()
