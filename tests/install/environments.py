"""Small real Pythons with pip, and wheels of a few hundred bytes, for tests of what installing does to others."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from candela.install.environment import requirement_lines

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = requirement_lines(REPOSITORY / "requirements.txt")
BROUGHT = {"torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.2.0", "pillow": "11.0.0"}


def new_environment(folder: Path) -> Path:
    """-> its site-packages. It has pip alone."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.rmtree(site / "setuptools", ignore_errors=True)
    return site


def contents(name: str, version: str, requires: tuple[str, ...]) -> dict[str, str]:
    """path -> text of a distribution: one module, and its metadata."""
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    metadata = "".join(f"Requires-Dist: {text}\n" for text in requires)
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return {**files, f"{about}/RECORD": "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])}


def give(site: Path, name: str, version: str, *requires: str) -> None:
    """As if pip had installed it."""
    for path, text in contents(name, version, requires).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


def wheel(index: Path, name: str, version: str, *requires: str) -> None:
    index.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(index / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in contents(name, version, requires).items():
            archive.writestr(path, text)


def own_wheels(index: Path, without: str = "") -> dict[str, str]:
    """Everything that requirements.txt names, in the oldest version that will do. -> canonical name -> version"""
    versions = {}
    for line in REQUIREMENTS:
        requirement = Requirement(line)
        (bound,) = requirement.specifier
        if requirement.name != without:
            wheel(index, requirement.name, bound.version)
            versions[requirement.name.replace("_", "-")] = bound.version
    return versions


def checkout(folder: Path, version: str = "0.26.0") -> Path:
    """What makes a folder a ComfyUI, on disk."""
    for name in ("custom_nodes", "models/diffusers", "models/diffusion_models", "comfy"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "custom_nodes" / "websocket_image_save.py").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    (folder / "requirements.txt").write_text("torch\nPillow\n")
    return folder


def listing(folder: Path) -> dict[str, str]:
    """Every path below -> checksum of a file, target of a link, nothing for a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path.relative_to(folder))] = ""
    return found


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def repacked(index: Path, name: str) -> None:
    """A wheel of a pure Python distribution that this Python has."""
    found = importlib.metadata.distribution(name)
    index.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(index / f"{name}-{found.version}-py3-none-any.whl", "w") as archive:
        for file in found.files or []:
            if "__pycache__" not in file.parts and file.name not in ("INSTALLER", "REQUESTED"):
                archive.write(str(file.locate()), str(file))
