"""A ComfyUI on disk: where its nodes and models go, and which Python runs it. It is never imported.

Layouts: a checkout, the Windows portable (ComfyUI/ beside python_embeded/), and a base folder (custom_nodes and models,
the program elsewhere), as ComfyUI Desktop and `--base-directory` have it.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from candela.errors import InstallError
from candela.install.extra_paths import add_extra_paths, base_paths
from candela.install.places import desktop_configuration, desktop_program, usual_places

ENVIRONMENTS = (".venv", "venv", "env", "conda", "conda_env")
INTERPRETERS = ("bin/python", "Scripts/python.exe", "python.exe")  # the last: a conda environment on Windows
PORTABLE = "python_embeded"  # spelled so by ComfyUI

# folder_paths.py of 0.8 and 0.26 alike, but for one order: they list models/unet first, its name of 2023. New files go
# into models/diffusion_models, where every guide and ComfyUI's own downloads put them; both are searched.
MODEL_FOLDERS = {
    "checkpoints": ("checkpoints",),
    "diffusers": ("diffusers",),
    "diffusion_models": ("diffusion_models", "unet"),
    "loras": ("loras",),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "vae_approx": ("vae_approx",),
}


@dataclass(frozen=True)
class ComfyUI:
    """One ComfyUI.

    Attributes:
        folder: holds custom_nodes and models.
        core: holds main.py; another folder than `folder` for ComfyUI Desktop, None where it was not found.
        version: of the core; "" where unknown.
        python: that runs it; None where none was found.
        models: kind of model -> folders; new files go into the first.
    """

    folder: Path
    core: Path | None
    version: str
    python: Path | None
    custom_nodes: Path
    models: dict[str, tuple[Path, ...]]


def quoted(path: Path) -> str:
    """As a shell takes it."""
    return f'"{path}"' if " " in str(path) else str(path)


def open_comfyui(path: str | os.PathLike[str]) -> ComfyUI:
    """The ComfyUI at `path`: its folder, the folder above it, or the custom_nodes or models in it.

    Raises:
        InstallError: there is none, or it may not be read; the message says what is there.
    """
    given = Path(os.path.expanduser(path)).absolute()
    try:
        there, names = given.is_dir(), sorted(entry.name for entry in given.iterdir()) if given.is_dir() else []
    except OSError as error:  # a name too long, a folder that may not be looked into
        shown = str(given) if len(str(given)) <= 200 else f"{str(given)[:200]}..."
        raise InstallError(
            f"{shown} cannot be looked into: {error.strerror or error}. Give the folder of ComfyUI that holds main.py: "
            "--comfyui DIR"
        ) from error
    if not there:
        raise InstallError(f"there is no folder {given}. Give the folder of ComfyUI that holds main.py: --comfyui DIR")
    if folder := _located(given):
        return _read(folder)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise InstallError(
        f"{given} is no ComfyUI. Looked for main.py with comfyui_version.py or comfy/ (a checkout), ComfyUI/ beside "
        f"{PORTABLE}/ (the Windows portable), or custom_nodes/ with models/ (ComfyUI Desktop's folder). "
        f"{f'It holds {shown}' if names else 'It is empty'}. Give the folder that holds main.py: --comfyui DIR"
    )


def search() -> list[ComfyUI]:
    """The one that COMFYUI_DIR names; without it, each one found in the usual places, nearest first.

    Raises:
        InstallError: COMFYUI_DIR names none.
    """
    if chosen := os.environ.get("COMFYUI_DIR"):
        try:
            return [open_comfyui(chosen)]
        except InstallError as error:
            raise InstallError(f"COMFYUI_DIR is set to {chosen}: {error}") from error
    desktop = _desktop_configuration()
    places = usual_places(sys.platform, Path.home(), os.environ, Path.cwd())
    folders = map(_located, [*map(Path, places), *(base_paths(desktop) if desktop.is_file() else [])])
    return [_read(folder) for folder in dict.fromkeys(folders) if folder]


def _located(path: Path) -> Path | None:
    """-> the folder with custom_nodes and models, free of links, as ComfyUI itself sees it."""
    inner = [path.parent] if path.name in ("custom_nodes", "models") else []
    for folder in (path, path / "ComfyUI", *inner):
        try:
            if _is_checkout(folder) or _is_base(folder):
                return folder.resolve()
        except OSError:  # no permission to look, a drive without a disk
            continue
    return None


def _is_checkout(folder: Path) -> bool:
    return (folder / "main.py").is_file() and ((folder / "comfyui_version.py").is_file() or (folder / "comfy").is_dir())


def _is_base(folder: Path) -> bool:
    return (folder / "custom_nodes").is_dir() and (folder / "models").is_dir()


def _read(folder: Path) -> ComfyUI:
    core: Path | None = folder
    configuration = folder / "extra_model_paths.yaml"
    applies = configuration.is_file()
    if not _is_checkout(folder):
        program = desktop_program(sys.platform, os.environ)
        core = Path(program) if program and _is_checkout(Path(program)) else None
        configuration = _desktop_configuration()
        applies = configuration.is_file() and folder in [base.resolve() for base in base_paths(configuration)]
    models = {kind: [str(folder / "models" / name) for name in names] for kind, names in MODEL_FOLDERS.items()}
    if applies:
        add_extra_paths(models, configuration)
    return ComfyUI(
        folder, core, _version(core) if core else "", _python(folder), folder / "custom_nodes",
        {kind: tuple(map(Path, models[kind])) for kind in MODEL_FOLDERS},
    )  # fmt: skip


def _desktop_configuration() -> Path:
    return Path(desktop_configuration(sys.platform, Path.home(), os.environ))


def _version(core: Path) -> str:
    for name in ("comfyui_version.py", "pyproject.toml"):  # the second: before 0.3.10
        file = core / name
        text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
        if found := re.search(r"^(?:__version__|version) *= *[\"']([^\"']+)", text, re.MULTILINE):
            return found[1]
    return ""


def pythons(folder: Path) -> list[Path]:
    """Where ComfyUI's own Python may lie, best first."""
    inside = [folder / name / python for name in ENVIRONMENTS for python in INTERPRETERS]
    above = [folder.parent / name / python for name in (".venv", "venv") for python in INTERPRETERS[:2]]
    return [*inside, *above, folder.parent / PORTABLE / "python.exe"]


def _python(folder: Path) -> Path | None:
    """COMFYUI_PYTHON if set; an environment in or beside `folder`; this Python, where it is evidently ComfyUI's.

    Links are left as they are: an environment's Python is one, and what it points to knows nothing of it."""
    if chosen := os.environ.get("COMFYUI_PYTHON"):
        return Path(os.path.expanduser(chosen)).absolute()
    if found := next((python for python in pythons(folder) if python.is_file()), None):
        return found
    try:
        importlib.metadata.version("comfyui-frontend-package")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(sys.executable)
