"""Carries a plan out: every file recorded before it is written, checked before it is in place, and on the disk for good
before the record says so."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from candela.checkpoints.manifest import GOOD, WRITING, Installed, Kept, changing_manifest, read_manifest
from candela.errors import InstallError
from candela.install import transfer
from candela.install.planning import Plan, PlannedFile
from candela.install.removal import forget

REPLACING = ("repair", "update")  # states of files that are ours, and written over


class Progress(Protocol):
    """What a person sees of it."""

    def begin(self, file: PlannedFile) -> Callable[[int], None]:
        """-> a function that is told how many more bytes have come."""
        ...

    def end(self, file: PlannedFile) -> None: ...


def install_model(plan: Plan, progress: Progress) -> None:
    """Downloads what is missing. A second run of a finished plan changes nothing.

    Raises:
        InstallError: what went wrong; everything that has arrived is kept for the next run.
    """
    if finished(plan):
        return
    _record_intent(plan)
    with ThreadPoolExecutor(1) as behind:
        settling: list[tuple[PlannedFile, str, Future[None]]] = []
        for file in plan.todo:
            report = progress.begin(file)
            sha256 = transfer.fetch(plan.source, file.remote, file.target, report, file.state in REPLACING)
            progress.end(file)
            settling.append((file, sha256, behind.submit(_to_disk, file.target)))
            settling = [each for each in settling if not _settled(*each, wait=False)]
        for each in settling:
            _settled(*each, wait=True)
    _record_end(plan)


def record_folder(folder: Path, created: list[str]) -> None:
    """Adds to `created` what has to be created for `folder`, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    created += [str(parent) for parent in reversed(missing) if str(parent) not in created]


def make_folder(folder: Path) -> None:
    """
    Raises:
        InstallError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(
            f"the folder {folder} cannot be created ({error.strerror or error}). Install as its owner, or choose "
            "another ComfyUI"
        ) from error


def prepare(folder: Path) -> None:
    """Creates a folder, recorded before, so that it is removed again with what was installed into it."""
    if not folder.is_dir():
        with changing_manifest() as manifest:
            record_folder(folder, manifest.folders)
        make_folder(folder)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _entry(plan: Plan, whole: bool) -> Installed:
    files = tuple(str(file.target) for file in plan.files)
    return Installed(
        plan.model, plan.precision, str(plan.root), plan.source.name, str(plan.lock), plan.folder, dict(plan.parts),
        files, whole,
    )  # fmt: skip


def _same(one: Installed, plan: Plan) -> bool:
    return (one.model, one.precision, one.root) == (plan.model, plan.precision, str(plan.root))


def finished(plan: Plan) -> bool:
    """Is nothing left to do: everything here, and in the manifest? (Its source may be another one by now.)"""
    if plan.todo or not plan.files:
        return not plan.files
    manifest = read_manifest()
    files = [manifest.files.get(str(file.target)) for file in plan.files]
    known = all(kept and kept.unchanged(file.target) for kept, file in zip(files, plan.files))
    wanted = _entry(plan, whole=True)
    return known and any(one.files == wanted.files and one.whole and _same(one, plan) for one in manifest.models)


def _record_intent(plan: Plan) -> None:
    """Before a byte is written: a run that is killed can be removed, or taken up again."""
    with changing_manifest() as manifest:
        for file in plan.files:
            record_folder(file.target.parent, manifest.folders)
            before = manifest.files.get(str(file.target))
            if file.state in ("fetch", "resume"):
                expected = f"{file.remote.algorithm}:{file.remote.digest}" if file.remote.digest else ""
                manifest.files[str(file.target)] = Kept(file.remote.origin, True, WRITING, expected)
            elif file.state == "here" and not (before and before.state == GOOD and before.unchanged(file.target)):
                # Was it put into place by a run that was killed before it could say so? Then it is ours.
                manifest.files[str(file.target)] = _kept(file, ours=bool(before and before.ours))
            if file.state == "here" and before and before.ours:
                transfer.remove_partial(file.target)
        entry = _entry(plan, whole=False)
        old = {name for one in manifest.models if _same(one, plan) for name in one.files}
        entry = dataclasses.replace(entry, files=(*entry.files, *sorted(old - set(entry.files))))
        manifest.models = [one for one in manifest.models if not _same(one, plan)] + [entry]
    for file in plan.files:
        make_folder(file.target.parent)


def _kept(file: PlannedFile, ours: bool, sha256: str = "") -> Kept:
    stat = file.target.stat()
    digest = sha256 or (file.remote.digest if file.remote.algorithm == "sha256" else "")
    if not digest:
        digest = transfer.digest_of(file.target, {"sha256"})["sha256"]
    return Kept(file.remote.origin, ours, GOOD, "", stat.st_size, stat.st_mtime_ns, digest, now(), file.remote.evidence)


def _to_disk(path: Path) -> None:
    """Waits until the file, and its name, would survive a power cut."""
    with open(path, "rb+", buffering=0) as file:
        os.fsync(file.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some shares cannot
                os.fsync(folder)
        finally:
            os.close(folder)


def _settled(file: PlannedFile, sha256: str, written: Future[None], wait: bool) -> bool:
    if not wait and not written.done():
        return False
    try:
        written.result()
    except OSError as error:
        raise InstallError(
            f"{file.target} did not reach the disk ({error.strerror or error}). Check the disk; the next run compares "
            "the file again"
        ) from error
    with changing_manifest() as manifest:
        manifest.files[str(file.target)] = _kept(file, True, sha256)
    return True


def _record_end(plan: Plan) -> None:
    """What an earlier install of the same brought, and this one does not need, goes."""
    entry = _entry(plan, whole=True)
    with changing_manifest() as manifest:
        old = [name for one in manifest.models if _same(one, plan) for name in one.files if name not in entry.files]
        manifest.models = [one for one in manifest.models if not _same(one, plan)] + [entry]
        forget(manifest, old)
