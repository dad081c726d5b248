"""Which models are on this machine whole, by what the manifest knows and by what their files' headers say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from candela.checkpoints.catalogue import DEMO_FOLDER, Model, hub_cache, installed
from candela.checkpoints.folder import read_folder
from candela.checkpoints.headers import read_header
from candela.checkpoints.manifest import DAMAGED, Installed, Manifest, home
from candela.checkpoints.opening import WEIGHT_FILES, read_model
from candela.errors import CheckpointError
from candela.install.comfyui import ComfyUI, quoted

SCANNED = ("checkpoints", "diffusion_models", "text_encoders", "vae")


@dataclass(frozen=True)
class Health:
    """One model, or one file. `state`: ok, warning or failed."""

    name: str
    state: str
    text: str
    remedy: str = ""


def examine_models(manifest: Manifest, comfyui: ComfyUI | None) -> Iterator[Health]:
    """What Candela installed, what else the catalogue's names lead to, and what lies in ComfyUI's model folders."""
    for entry in manifest.models:
        yield _installed(entry, manifest, comfyui)
    known = {entry.model for entry in manifest.models}
    for model in installed():
        if model.name not in known:
            yield _found(model)
    if comfyui:
        yield from _in_comfyui(comfyui, {Path(file) for entry in manifest.models for file in entry.files})


def _installed(entry: Installed, manifest: Manifest, comfyui: ComfyUI | None) -> Health:
    again = f"candela install {entry.model}{_precision(entry)}{_place(entry, comfyui)}"
    name = f"{entry.model}{f' {entry.precision}' if entry.precision else ''}"
    files = {Path(file): manifest.files.get(file) for file in entry.files}
    missing = [path for path in files if not path.is_file()]
    if missing or not entry.whole:
        what = f"{_names(missing)} missing" if missing else "its last file was not checked"
        return Health(name, "failed", f"incomplete: {len(files) - len(missing)} of {len(files)} files, {what}", again)
    for path in files:
        if problem := _problem(path):
            return Health(name, "failed", f"damaged: {problem}", again)
    found_damaged = [path for path, kept in files.items() if kept and kept.state == DAMAGED]
    if found_damaged:
        return Health(name, "failed", f"damaged: {_names(found_damaged)} is not what was published", again)
    changed = [path for path, kept in files.items() if kept and not kept.unchanged(path)]
    if changed:
        return Health(
            name, "warning", f"{_names(changed)} was changed since it was checked", f"candela verify {entry.model}"
        )
    checked = min((kept.checked for kept in files.values() if kept), default="")
    folder = entry.folder or entry.root
    return Health(name, "ok", f"{len(files)} files, {_size(files)}, checked {checked[:10] or 'never'}, in {folder}")


def _precision(entry: Installed) -> str:
    precision = f'"{entry.precision}"' if " " in entry.precision else entry.precision
    return f" --precision {precision}" if precision else ""


def _place(entry: Installed, comfyui: ComfyUI | None) -> str:
    """The ComfyUI that the entry's root belongs to, which need not be the one that was found."""
    if entry.root == str(home() / "models"):
        return " --comfyui none"
    its = comfyui and str(comfyui.models["diffusion_models"][0].parent) == entry.root
    return f" --comfyui {quoted(comfyui.folder if comfyui and its else Path(entry.root).parent)}"


def _found(model: Model) -> Health:
    again = "python -m pip install --force-reinstall --no-deps candela"
    if model.folder != DEMO_FOLDER:
        again = f"candela install {model.name}"
        if model.folder.is_relative_to(hub_cache()):
            repository = next(part for part in model.folder.parts if part.startswith("models--"))
            again = f"hf download {'/'.join(repository.split('--')[1:])} --force-download"
    try:
        checkpoint = read_model(model)
    except CheckpointError as error:
        return Health(model.name, "failed", str(error), again)
    return Health(model.name, "ok", f"{checkpoint.bytes / 1e9:.2f} GB, in {model.folder}")


def _in_comfyui(comfyui: ComfyUI, known: set[Path]) -> Iterator[Health]:
    """Only what is wrong: somebody's whole files are not listed."""
    for kind in SCANNED:
        for path in (path for folder in comfyui.models[kind] for path in sorted(folder.rglob("*"))):
            if path.suffix.lower() in WEIGHT_FILES and path not in known and (problem := _problem(path)):
                yield Health(f"{kind}/{path.name}", "failed", f"damaged: {problem}", "download this file again")
    for folder in comfyui.models["diffusers"]:
        for index in sorted([*folder.glob("*/model_index.json"), *folder.glob("*/*/model_index.json")]):
            if index not in known:
                try:
                    read_folder(index.parent)
                except CheckpointError as error:
                    yield Health(f"diffusers/{index.parent.name}", "failed", str(error), "download this folder again")


def _problem(path: Path) -> str:
    """What its header says against it: found without reading its tensors."""
    try:
        if path.suffix.lower() in WEIGHT_FILES:
            read_header(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _size(paths: Iterable[Path]) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e9:.2f} GB"
