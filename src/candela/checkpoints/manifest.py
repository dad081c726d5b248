"""What Candela installed on this machine, and what it knows of each file: one JSON file in the user's data folder.

Uninstalling removes exactly what stands here as ours. `find` resolves catalogue names by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candela.errors import DamagedFile, InstallError, NoSpace

VERSION = 1
WRITING, GOOD, DAMAGED = "writing", "good", "damaged"


@dataclass(frozen=True)
class Kept:
    """One file that a model consists of.

    Attributes:
        origin: owner/name@revision/path at the source.
        ours: written by Candela; False where the user had it before.
        state: writing (not in place yet, or not known to be), good, or damaged (found so, and not written since).
        expected: while writing, what is to come: algorithm:digest; empty where nobody published one.
        bytes, mtime_ns: when its checksum was last compared; another value now means that somebody wrote it since.
        sha256: of the content.
        checked: when, in UTC.
        evidence: whose checksum it was compared with: published (stands in Candela), hub, size only.
    """

    origin: str
    ours: bool
    state: str = GOOD
    expected: str = ""
    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    checked: str = ""
    evidence: str = ""

    def unchanged(self, path: Path) -> bool:
        """Has nobody written the file at `path` since it was compared, by its length and time of change?"""
        try:
            now = path.stat()
        except OSError:
            return False
        return self.state != WRITING and (now.st_size, now.st_mtime_ns) == (self.bytes, self.mtime_ns)


@dataclass(frozen=True)
class Installed:
    """One model in one place.

    Attributes:
        root: the models folder that it was installed into.
        lock: the folder in which installers wait for each other.
        source: where from, for people.
        folder: of a model in diffusers layout; "" otherwise.
        parts: component -> file or folder, of a model in split files.
        files: keys of `Manifest.files`.
        whole: everything has arrived.
    """

    model: str
    precision: str
    root: str
    source: str
    lock: str = ""
    folder: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Nodes:
    """The node pack in one ComfyUI.

    Attributes:
        folder: custom_nodes/candela.
        python: ComfyUI's own.
        files: path below `folder` -> sha256 of what was written; two, while one content replaces another.
        packages: name -> version of what pip brought for it.
        upgraded: name -> version before, of those in `packages` that were there in another version.
    """

    comfyui: str
    folder: str
    python: str
    version: str
    files: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    upgraded: dict[str, str] = field(default_factory=dict)


@dataclass
class Manifest:
    """Everything that is recorded. Paths are absolute.

    Attributes:
        models: later ones were installed later.
        folders: that were created on the way, to be removed once they are empty.
    """

    models: list[Installed] = field(default_factory=list)
    files: dict[str, Kept] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    nodes: list[Nodes] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"version": VERSION, **dataclasses.asdict(self)}


def home() -> Path:
    """The user's data folder: CANDELA_HOME, else the platform's own (~/.local/share/candela,
    ~/Library/Application Support/candela, %LOCALAPPDATA%\\candela)."""
    if chosen := os.environ.get("CANDELA_HOME"):
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:  # no such user
            raise InstallError(f"CANDELA_HOME is {chosen}, which is no folder: {error}") from error
    import platformdirs

    return platformdirs.user_data_path("candela", appauthor=False)


def read_manifest() -> Manifest:
    """The manifest as it is now; an empty one where nothing was installed.

    Raises:
        DamagedFile: there is one, and it cannot be read.
    """
    path = home() / "manifest.json"
    try:
        value = json.loads(path.read_text("utf-8"))
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']}; this Candela reads {VERSION}")
        return Manifest(
            [Installed(**{**entry, "files": tuple(entry["files"])}) for entry in value["models"]],
            {name: Kept(**entry) for name, entry in value["files"].items()},
            list(value["folders"]),
            [Nodes(**entry) for entry in value["nodes"]],
        )
    except (FileNotFoundError, NotADirectoryError):
        return Manifest()
    except PermissionError as error:
        raise DamagedFile(
            f"{path}, where Candela keeps what was installed, may not be read by this user. Its owner can allow it: "
            f"chmod a+r {path}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(
            f"{path}, where Candela keeps what it installed, cannot be read ({error}). Put a copy back, or move it "
            "away: the files stay, but `uninstall` will not know them"
        ) from error


@contextlib.contextmanager
def changing_manifest() -> Iterator[Manifest]:
    """The manifest, to be changed: nobody else changes it meanwhile; it is written whole, or not at all.

    Raises:
        DamagedFile: as `read_manifest`.
        InstallError: it cannot be written.
    """
    from filelock import FileLock

    folder = home()
    path, lock = folder / "manifest.json", FileLock(folder / "manifest.lock")
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        manifest = read_manifest()
        before = manifest.as_json()
        yield manifest
        after = manifest.as_json()
        with _told(folder):
            if after == Manifest().as_json():
                path.unlink(missing_ok=True)
            elif after != before:
                _write(path, json.dumps(after, indent=1))
    finally:
        with contextlib.suppress(OSError):  # Windows keeps an open file; it does no harm
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"the disk of {folder}, where Candela keeps what it installed, is full. Free some space and run the "
                "same command again"
            ) from error
        raise InstallError(
            f"{folder}, where Candela keeps what it installed, cannot be written ({error.strerror or error}). Set "
            "CANDELA_HOME to a folder that can"
        ) from error


def _write(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="manifest.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if os.name == "posix":  # a data folder may be shared: readable like any other file
                os.fchmod(descriptor, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
