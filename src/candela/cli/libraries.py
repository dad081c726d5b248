"""The libraries are imported here first, so that surroundings in which they cannot be are told in a sentence."""

from __future__ import annotations

import math
import os
import sys

from candela.errors import CandelaError, InstallError, InvalidRequest, OutOfMemory

LEAST = 1_000_000_000  # bytes of address space, measured: torch with the demo takes 0.85 GB
NO_ROOM = ("failed to map segment", "cannot allocate memory", "out of memory")  # the loader's words


def import_libraries() -> None:
    """
    Raises:
        InvalidRequest: an environment variable with which they cannot be imported.
        OutOfMemory: less address space than they take.
        InstallError: one is missing or broken.
    """
    if sys.flags.optimize > 1:
        raise InvalidRequest(
            "Python runs without docstrings (PYTHONOPTIMIZE=2 or -OO), which transformers reads when it is imported: "
            "unset PYTHONOPTIMIZE, or make it 1"
        )
    if (space := address_space()) < LEAST:  # below, native code ends the process before Python hears of it
        raise no_room(f"{space / 1e9:.2f} GB of address space; torch alone takes {LEAST / 1e9:.1f}")
    try:
        import torch  # noqa: F401, I001  # the first that takes much, and the first that says so
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except MemoryError as error:
        raise no_room("no memory was left") from error
    except (ImportError, OSError, ValueError) as error:
        raise _told(error) from error


def address_space() -> float:
    """Bytes that this process may map; infinity where nothing limits it."""
    try:
        import resource  # not on Windows
    except ImportError:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def no_room(why: str) -> OutOfMemory:
    return OutOfMemory(
        f"this process may not take as much memory as torch and the model need ({why}). Raise its limit (ulimit -v), "
        "or close other programs"
    )


def _told(error: Exception) -> CandelaError:
    text = str(error).strip()
    if "Invalid log settings" in text:
        return InvalidRequest(
            f"TORCH_LOGS is {os.environ.get('TORCH_LOGS')!r}, which torch does not know: unset it, or "
            "make it a list of names such as dynamo,inductor"
        )
    if any(words in text.lower() for words in NO_ROOM):
        return no_room(text[:200])
    return InstallError(f"the libraries cannot be imported ({text[:300]}). `candela doctor` looks for the cause")
