"""Where people keep ComfyUI. Pure functions of the platform, so that each one is tested on any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath, PurePosixPath, PureWindowsPath

PORTABLE = "ComfyUI_windows_portable"
DRIVES = "CDEFG"
IN_THE_CLOUD = ("/opt", "/workspace", "/root", "/app", "/content")  # docker images, RunPod, Colab


def _path(platform: str, text: object) -> PurePath:
    return PureWindowsPath(str(text)) if platform == "win32" else PurePosixPath(str(text))


def usual_places(platform: str, home: PurePath, environ: Mapping[str, str], here: PurePath) -> list[PurePath]:
    """Folders to look into, nearest first. `platform` is sys.platform's; `here` the current folder."""
    home, here = _path(platform, home), _path(platform, here)
    near = [here, *here.parents]
    own = [home / "ComfyUI", home / "comfyui", home / "comfy" / "ComfyUI", home / "Documents" / "ComfyUI"]
    if platform == "win32":
        drives = [PureWindowsPath(f"{letter}:\\") for letter in DRIVES]
        roots = [home, *(home / name for name in ("Desktop", "Downloads", "Documents")), *drives]
        packages = _path(platform, environ.get("APPDATA", home)) / "StabilityMatrix" / "Packages"
        rest = [*(root / PORTABLE for root in roots), *(drive / "ComfyUI" for drive in drives), packages]
    else:
        rest = [home / "pinokio" / "api" / "comfy.git" / "app"]
        if platform != "darwin":
            rest += [PurePosixPath(root) / "ComfyUI" for root in IN_THE_CLOUD]
    return list(dict.fromkeys([*near, *own, *rest]))


def desktop_configuration(platform: str, home: PurePath, environ: Mapping[str, str]) -> PurePath:
    """The extra_model_paths.yaml that ComfyUI Desktop starts ComfyUI with."""
    home = _path(platform, home)
    folder = {
        "win32": _path(platform, environ.get("APPDATA", home / "AppData" / "Roaming")),
        "darwin": home / "Library" / "Application Support",
    }.get(platform, _path(platform, environ.get("XDG_CONFIG_HOME", home / ".config")))
    return folder / "ComfyUI" / "extra_models_config.yaml"


def desktop_program(platform: str, environ: Mapping[str, str]) -> PurePath | None:
    """Where ComfyUI Desktop keeps main.py; it exists for Windows and macOS."""
    if platform == "darwin":
        return PurePosixPath("/Applications/ComfyUI.app/Contents/Resources/ComfyUI")
    if platform == "win32" and (local := environ.get("LOCALAPPDATA")):
        return PureWindowsPath(local) / "Programs" / "@comfyorgcomfyui-electron" / "resources" / "ComfyUI"
    return None
