"""What goes to the terminal: answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from candela.errors import CandelaError, GenerationError, InstallError, OutOfMemory


def say(message: str) -> None:
    with suppress(OSError):  # stderr is where a failure to write would be told
        print(f"candela: {plain(message, lines=True)}", file=sys.stderr, flush=True)


@contextmanager
def standard_streams() -> Iterator[None]:
    """While a command runs. An answer that nobody can have got is a failure: told in one sentence, exit code 1. If
    its reader has gone (`| head -1`), nothing is told."""
    answers = sys.stdout is not None
    _fill_closed_streams()
    if not answers:
        say("standard output is closed, so there is nowhere to print to. Send it to a file, or to /dev/null")
        sys.exit(1)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not _is_broken(sys.stdout):
            raise  # of something else: a defect
        if not isinstance(error, BrokenPipeError):
            say(f"standard output cannot be written: {error.strerror or error}. Send it elsewhere")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again when it ends
        sys.exit(1)


def _fill_closed_streams() -> None:
    """Closed ones (`>&-`) are opened on nothing: otherwise the next file takes their number, and gets what a library
    prints."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _is_broken(stream: Any) -> bool:
    """What failed before may be gone from the buffer, so it is tried."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def plain(text: object, lines: bool = False) -> str:
    """What a file says of itself, made safe to print: a terminal obeys some characters, and a line end may begin a
    line that looks like ours. `lines` keeps line ends, and indents what follows them."""
    if lines:
        return "\n    ".join(map(plain, str(text).split("\n")))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def size(number: int) -> str:
    """Bytes, in decimal units as disks and the hub count."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if number >= factor:
            return f"{number / factor:.{digits}f} {unit}"
    return f"{number} bytes"


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, in ASCII: it passes through any console and any pipe."""
    print(json.dumps(value), flush=True)


def error_report(error: CandelaError) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def exit_code(error: CandelaError) -> int:
    """1: the input was good and the work failed. 2: bad input."""
    return 1 if isinstance(error, (GenerationError, OutOfMemory, InstallError)) else 2
