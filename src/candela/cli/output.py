"""What goes to the terminal: answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from candela.errors import CandelaError, GenerationError, InstallError, OutOfMemory


def say(message: str) -> None:
    print(f"candela: {plain(message, lines=True)}", file=sys.stderr)


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
