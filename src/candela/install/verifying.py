"""Hashes installed files again, and says which are still what was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from candela.checkpoints import manifest as manifest_states
from candela.checkpoints.manifest import WRITING, Installed, Kept, changing_manifest, read_manifest
from candela.errors import ModelNotFound
from candela.install.installing import now
from candela.install.transfer import arrived_bytes, digest_of

OK, MISSING, DAMAGED, CHANGED, UNFINISHED, UNREADABLE = (
    "ok", "missing", "damaged", "changed", "unfinished", "unreadable",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """One file of one model: ok, missing, damaged (its content is another, its time is not), changed (both are),
    unfinished (`bytes` of it have arrived), or unreadable."""

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
            path, kept = Path(name), read_manifest().files.get(name)
            if kept is None:  # removed meanwhile
                continue
            try:
                state = _state(path, kept, report)
            except OSError:
                state = UNREADABLE
            size = path.stat().st_size if path.is_file() else arrived_bytes(path)
            if state in (OK, DAMAGED):
                _record(path, kept, state)
            yield Verdict(one.model, name, state, size)


def _state(path: Path, kept: Kept, report: Callable[[Path, int], None]) -> str:
    if not path.is_file():
        return UNFINISHED if kept.state == WRITING else MISSING
    algorithm, _, digest = kept.expected.partition(":") if kept.state == WRITING else ("sha256", "", kept.sha256)
    if digest and digest_of(path, {algorithm}, lambda number: report(path, number))[algorithm] == digest:
        return OK
    return DAMAGED if kept.unchanged(path) else CHANGED


def _record(path: Path, kept: Kept, state: str) -> None:
    if state == DAMAGED:
        after = dataclasses.replace(kept, state=manifest_states.DAMAGED)
    else:
        stat, sha256 = path.stat(), kept.sha256 or digest_of(path, {"sha256"})["sha256"]
        after = Kept(kept.origin, kept.ours, manifest_states.GOOD, "", stat.st_size, stat.st_mtime_ns, sha256, now(),
                     kept.evidence)  # fmt: skip
    with changing_manifest() as manifest:
        if str(path) in manifest.files:
            manifest.files[str(path)] = after
