"""Hashes installed files again, and says which are still what was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from candela.checkpoints.manifest import Installed, Kept, changing_manifest, read_manifest
from candela.errors import ModelNotFound
from candela.install.installing import now
from candela.install.transfer import arrived_bytes, digest_of

OK, MISSING, DAMAGED, CHANGED, UNFINISHED = "ok", "missing", "damaged", "changed", "unfinished"


@dataclass(frozen=True)
class Verdict:
    """One file of one model: ok, missing, damaged (its content is another, its time is not), changed (both are), or
    unfinished (`bytes` of it have arrived)."""

    model: str
    path: str
    state: str
    bytes: int


def installed_of(model: str | None) -> list[Installed]:
    """
    Raises:
        ModelNotFound: Candela did not install it.
    """
    everything = read_manifest().models
    found = [one for one in everything if model in (None, one.model)]
    if model and not found:
        known = ", ".join(sorted({one.model for one in everything})) or "nothing"
        raise ModelNotFound(
            f"{model} was not installed by Candela, so there is nothing to compare it with; was: {known}"
        )
    return found


def verify(models: list[Installed], report: Callable[[Path, int], None]) -> Iterator[Verdict]:
    """One file after the other; `report` is told how many bytes of it were just read. What is found is recorded: a
    damaged file is fetched again by the next install."""
    for one in models:
        for name in one.files:
            path, kept = Path(name), read_manifest().files[name]
            state = _state(path, kept, report)
            size = path.stat().st_size if path.is_file() else arrived_bytes(path)
            if state in (OK, DAMAGED):
                _record(path, kept, state)
            yield Verdict(one.model, name, state, size)


def _state(path: Path, kept: Kept, report: Callable[[Path, int], None]) -> str:
    if not path.is_file():
        return UNFINISHED if kept.ours and not kept.sha256 else MISSING
    if not kept.sha256:
        return DAMAGED  # found so before, or cut off before it was checked
    if digest_of(path, {"sha256"}, lambda number: report(path, number))["sha256"] == kept.sha256:
        return OK
    return DAMAGED if kept.unchanged(path) else CHANGED


def _record(path: Path, kept: Kept, state: str) -> None:
    stat = path.stat()
    with changing_manifest() as manifest:
        manifest.files[str(path)] = (
            dataclasses.replace(kept, bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, checked=now())
            if state == OK
            else dataclasses.replace(kept, sha256="", checked="")
        )
