"""Takes away what was installed, and nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path

from candela.checkpoints.manifest import Kept, Manifest, changing_manifest, read_manifest
from candela.errors import InstallError, ModelNotFound
from candela.install.transfer import digest_of, remove_partial


def remove_model(model: str) -> tuple[list[str], list[str]]:
    """Removes every install of `model`. -> the files that are gone; what stays, and why, as sentences.

    A file that another installed model needs stays, as does one that was there before, or was changed since.

    Raises:
        ModelNotFound: it was never installed.
        InstallError: a file cannot be removed.
    """
    if not any(one.model == model for one in read_manifest().models):
        known = sorted({one.model for one in read_manifest().models})
        raise ModelNotFound(
            f"{model} was not installed by Candela. Installed are: {', '.join(known) or 'none'}. What was put there "
            "otherwise has to be removed by hand"
        )
    gone: list[str] = []
    stays: list[str] = []
    with changing_manifest() as manifest:
        mine = [one for one in manifest.models if one.model == model]
        others = {file for one in manifest.models if one.model != model for file in one.files}
        for name in dict.fromkeys(file for one in mine for file in one.files):
            kept = manifest.files.get(name)
            if name in others or kept is None:
                stays += [f"{name}: another installed model needs it"] if name in others else []
                continue
            reason = _remove(Path(name), kept)
            (stays.append(f"{name}: {reason}") if reason else gone.append(name))
            del manifest.files[name]
        manifest.models = [one for one in manifest.models if one.model != model]
        remove_folders(manifest)
    return gone, stays


def _remove(path: Path, kept: Kept) -> str:
    """-> why it stays; empty when it is gone."""
    if not kept.ours:
        return "it was there before"
    try:
        remove_partial(path)
        if not path.exists():
            return ""
        if kept.sha256 and not kept.unchanged(path) and digest_of(path, {"sha256"})["sha256"] != kept.sha256:
            return "it was changed after it was installed; remove it by hand if it is not needed"
        path.unlink()
    except OSError as error:
        raise InstallError(f"{path} cannot be removed ({error.strerror or error}). Do it as its owner") from error
    return ""


def remove_folders(manifest: Manifest) -> None:
    """Those that installing created and that are empty now; the rest is not ours any more once nothing is installed."""
    for folder in sorted(manifest.folders, key=len, reverse=True):
        with contextlib.suppress(OSError):  # something lies in it
            Path(folder).rmdir()
    manifest.folders = [folder for folder in manifest.folders if Path(folder).exists()]
    if not manifest.models and not manifest.nodes:
        manifest.folders = []
