"""The node pack in a ComfyUI: planned, put there, taken away again. The pack is copied, as a clone would look.

The manifest is written before the files are, so that what a killed run leaves can be removed too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet

import candela
from candela.checkpoints.manifest import Manifest, Nodes, changing_manifest, home, read_manifest
from candela.errors import InstallError, NoSpace
from candela.install.comfyui import ComfyUI, pythons, quoted
from candela.install.dependencies import (
    Packages,
    install_packages,
    plan_packages,
    read_requirements,
    remove_packages,
)
from candela.install.environment import read_environment
from candela.install.locking import locked
from candela.install.pack import Pack, find_pack, sha256

PARTIAL = ".candela-part"


@dataclass(frozen=True)
class NodesPlan:
    """What installing the nodes would do.

    Attributes:
        folder: custom_nodes/candela.
        foreign: a Candela in custom_nodes that is not ours to change; then nothing else is planned.
        digests: path below `folder` -> sha256, of the whole pack.
        write: those paths that are missing or differ.
        edited: those of `write` that somebody changed since they were installed; they are replaced.
        obsolete: of an earlier pack, and not in this one.
        bytes: to be written.
    """

    comfyui: ComfyUI
    folder: Path
    version: str
    foreign: Path | None = None
    digests: dict[str, str] = field(default_factory=dict)
    write: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()
    bytes: int = 0
    packages: Packages = field(default_factory=Packages)

    @property
    def changes(self) -> bool:
        return bool(self.write or self.obsolete or self.packages.versions)


@dataclass(frozen=True)
class Removed:
    """What removing the nodes left.

    Attributes:
        edited: files that somebody changed since they were installed.
        needed: packages that stay -> why: "other 1.2 requires gguf".
    """

    edited: tuple[Path, ...] = ()
    needed: dict[str, str] = field(default_factory=dict)


def plan_nodes(comfyui: ComfyUI) -> NodesPlan:
    """What `install_nodes` would do. Changes nothing.

    Raises:
        Conflict: ComfyUI's Python cannot take what the nodes need without harm to others.
        SourceError: a package is missing, and pip's index cannot be reached.
        InstallError: ComfyUI or its Python is too old, or not found.
    """
    folder = comfyui.custom_nodes / "candela"
    version = candela.__version__
    pack = find_pack()
    check_core(comfyui, pack)
    known = recorded(read_manifest(), folder)
    if foreign := _foreign(comfyui, known):
        return NodesPlan(comfyui, folder, version, foreign)
    environment = read_environment(python_of(comfyui))
    requirements = read_requirements(pack.files["pyproject.toml"], pack.files["requirements.txt"])
    packages = plan_packages(environment, requirements, comfyui.folder, folder)
    digests = {path: sha256(file) for path, file in pack.files.items()}
    there = {path: sha256(folder / path) for path in {*digests, *known.files} if (folder / path).is_file()}
    write = tuple(path for path in digests if there.get(path) != digests[path])
    return NodesPlan(
        comfyui, folder, version, None, digests, write,
        edited=tuple(path for path in write if path in there and there[path] not in known.files.get(path, "")),
        obsolete=tuple(sorted(known.files.keys() & there.keys() - digests.keys())),
        bytes=sum(pack.files[path].stat().st_size for path in write),
        packages=packages,
    )  # fmt: skip


def check_core(comfyui: ComfyUI, pack: Pack) -> None:
    """Raises: InstallError: ComfyUI is older than the nodes need. An unknown version passes."""
    if comfyui.version and not SpecifierSet(pack.requires_comfyui).contains(comfyui.version, prereleases=True):
        raise InstallError(
            f"the ComfyUI in {comfyui.folder} is {comfyui.version}; the nodes need {pack.requires_comfyui}. "
            f"Nothing was changed. Update ComfyUI: {update_command(comfyui)}"
        )


def update_command(comfyui: ComfyUI) -> str:
    if (comfyui.folder.parent / "update" / "update_comfyui.bat").is_file():
        return quoted(comfyui.folder.parent / "update" / "update_comfyui.bat")
    if comfyui.core != comfyui.folder:
        return "ComfyUI Desktop updates itself: start it, menu Help, Check for updates"
    python, requirements = quoted(comfyui.python or Path("python")), quoted(comfyui.folder / "requirements.txt")
    return f"git -C {quoted(comfyui.folder)} pull && {python} -m pip install -r {requirements}"


def python_of(comfyui: ComfyUI) -> Path:
    """Raises: InstallError: none was found."""
    if comfyui.python is None:
        places = ", ".join(str(place) for place in pythons(comfyui.folder)[:2])
        raise InstallError(
            f"no Python of its own was found for the ComfyUI in {comfyui.folder} (looked for {places} and the like). "
            "Name the one that starts it: COMFYUI_PYTHON=/path/to/python"
        )
    return comfyui.python


def recorded(manifest: Manifest, folder: Path) -> Nodes:
    """What the manifest knows of the pack in `folder`; an entry without files where it knows nothing."""
    return next((one for one in manifest.nodes if one.folder == str(folder)), Nodes("", str(folder), "", ""))


def packs_in(custom_nodes: Path) -> list[Path]:
    """Every Candela in that folder: `candela` itself, and clones of other names."""
    own = custom_nodes / "candela"
    found = [own] if own.is_symlink() or _holds_files(own) else []
    for project in sorted(custom_nodes.glob("*/pyproject.toml")):
        if project.parent != own and not project.parent.name.endswith(".disabled"):
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError
            ):  # another pack's, and none of our business
                if tomllib.loads(project.read_text("utf-8"))["project"]["name"] == "candela":
                    found.append(project.parent)
    return found


def _foreign(comfyui: ComfyUI, known: Nodes) -> Path | None:
    """A clone, a link or a shim that the user put there; two packs would define the same nodes."""
    own = Path(known.folder)
    ours = known.files and not own.is_symlink()
    return next((pack for pack in packs_in(comfyui.custom_nodes) if not (ours and pack == own)), None)


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() and path.parent.name != "__pycache__" for path in folder.rglob("*"))


def _alone() -> contextlib.AbstractContextManager[None]:
    """One installer at a time: two pips in one environment damage it."""
    home().mkdir(parents=True, exist_ok=True)
    return locked(home(), lambda: None)


def install_nodes(plan: NodesPlan) -> None:
    """Does what `plan` says: packages first, so that ComfyUI never sees nodes that cannot run.

    Raises:
        SourceError, InstallError, NoSpace: the manifest knows what was begun: run it again, or remove it.
    """
    if plan.foreign or not plan.changes:
        return
    pack = find_pack()
    with _alone():
        _record_begun(plan)
        install_packages(read_environment(python_of(plan.comfyui)), plan.packages)
        with _explained(f"the nodes cannot be written into {plan.folder}"):
            for path in plan.write:
                _copy(pack.files[path], plan.folder / path)
            for path in plan.obsolete:
                (plan.folder / path).unlink(missing_ok=True)
            _tidy(plan.folder, [*plan.digests, *plan.obsolete])
        with changing_manifest() as manifest:
            known = recorded(manifest, plan.folder)
            _put(manifest, replace(known, files=plan.digests))


def _record_begun(plan: NodesPlan) -> None:
    with changing_manifest() as manifest:
        known = recorded(manifest, plan.folder)
        files = dict(known.files)
        for path in plan.write:  # two checksums while one content replaces the other
            files[path] = f"{files.get(path, '')} {plan.digests[path]}".strip()
        # What an earlier run brought is not what was there before us.
        before = {k: v for k, v in plan.packages.upgraded.items() if known.packages.get(k) != v}
        _put(
            manifest,
            Nodes(
                str(plan.comfyui.folder), str(plan.folder), str(plan.comfyui.python), plan.version, files,
                {**known.packages, **plan.packages.versions}, {**known.upgraded, **before},
            ),
        )  # fmt: skip


def _put(manifest: Manifest, nodes: Nodes) -> None:
    manifest.nodes = [*(one for one in manifest.nodes if one.folder != nodes.folder), nodes]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def remove_nodes(nodes: Nodes) -> Removed:
    """Takes away the files that are as they were installed, then the packages that nobody else needs.

    Raises:
        SourceError, InstallError: pip failed; the files are gone, and the manifest still knows the packages.
    """
    folder = Path(nodes.folder)
    with _alone():
        with _explained(f"the nodes cannot be removed from {folder}; is ComfyUI running?"):
            edited = _remove_files(folder, nodes.files)
        with changing_manifest() as manifest:
            _put(manifest, replace(nodes, files={}))
        needed = _remove_packages(nodes)
        with changing_manifest() as manifest:
            manifest.nodes = [one for one in manifest.nodes if one.folder != nodes.folder]
    return Removed(tuple(edited), needed)


def _remove_files(folder: Path, files: dict[str, str]) -> list[Path]:
    edited = []
    for path, digests in files.items():
        file = folder / path
        if file.is_file() and sha256(file) not in digests:
            edited.append(file)
        else:
            file.unlink(missing_ok=True)
    _tidy(folder, list(files))
    return edited


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else InstallError
        raise kind(f"{what}: {error}. Put that right and run the same command again") from error


def _remove_packages(nodes: Nodes) -> dict[str, str]:
    if not nodes.packages or not Path(nodes.python).is_file():  # an environment that is gone took its packages along
        return {}
    environment = read_environment(Path(nodes.python))
    return remove_packages(environment, nodes.packages, nodes.upgraded, Path(nodes.comfyui), Path(nodes.folder))


def _tidy(folder: Path, paths: list[str]) -> None:
    """Removes compiled and half-copied files, and those folders of `paths` that are empty now."""
    if not folder.is_dir():
        return
    for cache in list(folder.rglob("__pycache__")):
        if not any(source.suffix == ".py" for source in cache.parent.iterdir()):
            shutil.rmtree(cache)
    for partial in list(folder.rglob(f"*{PARTIAL}")):
        partial.unlink()
    ours = {folder, *(parent for path in paths for parent in (folder / path).parents if folder in parent.parents)}
    for one in sorted(ours, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # not empty: it stays
            one.rmdir()
