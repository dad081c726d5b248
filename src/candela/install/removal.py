"""Takes away what was installed, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from candela.checkpoints.manifest import WRITING, Kept, Manifest, changing_manifest, read_manifest
from candela.errors import InstallError, ModelNotFound
from candela.install.locking import locked
from candela.install.transfer import digest_of, remove_partial


def remove_model(model: str, waiting: Callable[[], None]) -> tuple[list[str], list[str]]:
    """Removes every install of `model`. -> the files that are gone; what stays, and why, as sentences.

    A file that another installed model needs stays, as does one that was there before, or was written since.

    Raises:
        ModelNotFound: it was never installed.
        InstallError: a file cannot be removed.
    """
    mine = [one for one in read_manifest().models if one.model == model]
    if not mine:
        known = sorted({one.model for one in read_manifest().models})
        raise ModelNotFound(
            f"{model} was not installed by Candela. Installed are: {', '.join(known) or 'none'}. What was put there "
            "otherwise has to be removed by hand"
        )
    with contextlib.ExitStack() as locks:
        for lock in sorted({one.lock for one in mine if os.path.isdir(one.lock)}):
            locks.enter_context(locked(Path(lock), waiting))
        with changing_manifest() as manifest:
            names = dict.fromkeys(name for one in manifest.models if one.model == model for name in one.files)
            manifest.models = [one for one in manifest.models if one.model != model]
            gone, stays = forget(manifest, names)
    with changing_manifest() as manifest:  # only now are those folders empty in which a lock lay
        remove_folders(manifest)
    return gone, stays


def forget(manifest: Manifest, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Removes files that no model of `manifest` needs any more. -> as `remove_model`"""
    needed = {name for one in manifest.models for name in one.files}
    gone: list[str] = []
    stays: list[str] = []
    for name in names:
        kept = manifest.files.get(name)
        if name in needed:
            stays.append(f"{name}: another installed model needs it")
        elif kept:
            reason = _reason_to_stay(Path(name), kept)
            if reason:
                stays.append(f"{name}: {reason}")
            if kept.ours and _removed(Path(name), whole=not reason):
                gone.append(name)
            del manifest.files[name]
    return gone, stays


def _reason_to_stay(path: Path, kept: Kept) -> str:
    if not kept.ours:
        return "it was there before"
    if not path.exists() or kept.unchanged(path):
        return ""
    algorithm, _, digest = kept.expected.partition(":") if kept.state == WRITING else ("sha256", "", kept.sha256)
    try:
        if digest and digest_of(path, {algorithm})[algorithm] == digest:
            return ""
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return "it was written after it was installed; remove it by hand if it is not needed"


def _removed(path: Path, whole: bool) -> bool:
    """What an unfinished download left goes in any case, the file itself if `whole`. -> is it gone?"""
    try:
        remove_partial(path)
        there = path.exists() and whole
        if whole:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InstallError(
            f"{path} cannot be removed ({error.strerror or error}). Stop ComfyUI if it is running, or do it as the "
            "file's owner"
        ) from error
    return there


def remove_folders(manifest: Manifest) -> None:
    """Those that installing created and that are empty now; the rest is not ours any more once nothing is installed."""
    for folder in sorted(manifest.folders, key=len, reverse=True):
        with contextlib.suppress(OSError):  # something lies in it
            Path(folder).rmdir()
    manifest.folders = [folder for folder in manifest.folders if Path(folder).exists()]
    if not manifest.models and not manifest.nodes:
        manifest.folders = []
