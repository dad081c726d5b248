"""The files of the node pack, as a clone in custom_nodes has them, wherever this Candela itself was installed from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import candela
from candela.errors import InstallError

TOP = ("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE")
FOLDERS = ("example_workflows", "locales")
SHARED = "candela-nodes"  # under share/ in a wheel; see [tool.setuptools.data-files]


@dataclass(frozen=True)
class Pack:
    """The node pack.

    Attributes:
        files: path below custom_nodes/candela, with slashes -> where it lies now.
    """

    files: dict[str, Path]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files.values())

    @property
    def requires_comfyui(self) -> str:
        """A version specifier."""
        return tomllib.loads(self.files["pyproject.toml"].read_text("utf-8"))["tool"]["comfy"]["requires-comfyui"]


def find_pack() -> Pack:
    """The pack that belongs to the running Candela.

    Raises:
        InstallError: this Candela was installed without it.
    """
    package = Path(candela.__file__).parent
    root = _root(package)
    files = {name: root / name for name in TOP}
    for folder in FOLDERS:
        files |= {f"{folder}/{path}": root / folder / path for path in _below(root / folder)}
    files |= {f"src/candela/{path}": package / path for path in _below(package)}
    return Pack(files)


def _root(package: Path) -> Path:
    """Of a clone, or of what a wheel has put under share/."""
    clone = package.parents[1]
    if (clone / FOLDERS[0]).is_dir() and (clone / "pyproject.toml").is_file():
        return clone
    listed = importlib.metadata.files("candela") or []
    for file in listed:
        if file.parts[-2:] == (SHARED, TOP[0]):
            return Path(str(file.locate())).resolve().parent
    raise InstallError(
        f"the Candela in {package} came without its ComfyUI nodes' workflows and translations. "
        "Install it again: python -m pip install --force-reinstall --no-deps candela"
    )


def _below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inner.parts):
            yield inner.as_posix()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
