"""extra_model_paths.yaml, read as ComfyUI reads it (utils/extra_config.py and folder_paths.py of 0.8 and 0.26)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from candela.errors import InstallError

LEGACY = {"unet": "diffusion_models", "clip": "text_encoders"}


def add_extra_paths(models: dict[str, list[str]], file: Path) -> None:
    """Adds what `file` says to `models`: kind -> folders. A section's `is_default` puts its folders first.

    Raises:
        InstallError: ComfyUI itself could not read it.
    """
    here = os.path.dirname(os.path.abspath(file))
    for section in _sections(file):
        base = _base(section, here) or here
        default = section.get("is_default", False)
        for kind, lines in section.items():
            if kind not in ("base_path", "is_default"):
                for line in filter(None, lines.split("\n")):
                    _add(models, LEGACY.get(kind, kind), os.path.normpath(os.path.join(base, line)), default)


def base_paths(file: Path) -> list[Path]:
    """The base_path of each section."""
    here = os.path.dirname(os.path.abspath(file))
    return [Path(base) for section in _sections(file) if (base := _base(section, here))]


def _sections(file: Path) -> list[dict[str, Any]]:
    import yaml

    try:
        sections = [section for section in (yaml.safe_load(file.read_text("utf-8")) or {}).values() if section]
        for section in sections:
            for kind, lines in section.items():
                if kind != "is_default" and not isinstance(lines, str):
                    raise ValueError(f"{kind} is {lines!r}, and not text")
    except (OSError, yaml.YAMLError, AttributeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InstallError(
            f"{file}, which says where ComfyUI's models are, cannot be read: {said}. ComfyUI itself needs it as "
            "sections of `kind: folder` lines: correct it, or move it away"
        ) from error
    return sections


def _base(section: dict[str, Any], here: str) -> str | None:
    if "base_path" not in section:
        return None
    base = os.path.expandvars(os.path.expanduser(section["base_path"]))
    return base if os.path.isabs(base) else os.path.abspath(os.path.join(here, base))


def _add(models: dict[str, list[str]], kind: str, folder: str, default: bool) -> None:
    folders = models.setdefault(kind, [])
    if folder not in folders:
        folders.insert(0 if default else len(folders), folder)
    elif default:
        folders.remove(folder)
        folders.insert(0, folder)
