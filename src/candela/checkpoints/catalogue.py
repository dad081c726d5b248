"""Names to folders: what a user may call a model, and where it lies on this machine."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from candela.checkpoints.manifest import Installed, read_manifest
from candela.errors import DamagedFile, ModelNotFound

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "model"


@dataclass(frozen=True)
class Entry:
    """A model that Candela knows by name. `repository` is its id on the Hugging Face hub."""

    name: str
    summary: str
    repository: str | None = None


CATALOGUE = {
    entry.name: entry
    for entry in [
        Entry("demo", "the embedded tiny Z-Image: coloured shapes, no download"),
        Entry("z-image-turbo", "Z-Image Turbo, 8 steps", "Tongyi-MAI/Z-Image-Turbo"),
        Entry("z-image", "Z-Image Base, 50 steps with guidance", "Tongyi-MAI/Z-Image"),
        Entry("lumina-image-2", "Lumina-Image 2.0, 30 steps", "Alpha-VLLM/Lumina-Image-2.0"),
        Entry("lumina-next-sft", "Lumina-Next SFT, 30 steps", "Alpha-VLLM/Lumina-Next-SFT-diffusers"),
        Entry("sdxl-turbo", "SDXL-Turbo, 1 to 4 steps at 512x512", "stabilityai/sdxl-turbo"),
    ]
}


PREVIEW_DECODER = Entry("taef1", "no model: sharp previews while Z-Image and Lumina-Image 2.0 run", "madebyollin/taef1")


@dataclass(frozen=True)
class Model:
    """A model found on this machine: what the user calls it, and its folder in diffusers layout; or its `parts`,
    component -> file or folder, where it lies in split files (`folder` is then the transformer's)."""

    name: str
    folder: Path
    parts: dict[str, str] = field(default_factory=dict)


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads (HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub).

    Read from the environment rather than from the library, whose import costs more than a help text may take."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expanduser(cache))
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


def _snapshot(repository: str) -> Path | None:
    """The newest complete-looking snapshot of a hub repository in the cache, or None."""
    root = hub_cache() / f"models--{repository.replace('/', '--')}"
    reference = root / "refs" / "main"
    candidates = [root / "snapshots" / reference.read_text().strip()] if reference.is_file() else []
    if (root / "snapshots").is_dir():
        candidates += sorted((root / "snapshots").iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    return next((path for path in candidates if (path / "model_index.json").is_file()), None)


def _by_candela() -> dict[str, Model]:
    """What `candela install` brought, by name; of one name in several places, the latest."""
    whole = [entry for entry in read_manifest().models if entry.whole and _is_here(entry)]
    return {
        entry.model: Model(entry.model, Path(entry.folder or entry.parts["transformer"]), entry.parts)
        for entry in whole
        if entry.parts or entry.model != PREVIEW_DECODER.name
    }


def preview_decoder() -> Path | None:
    """The folder of the installed preview decoder (an AutoencoderTiny for Flux's latents), if there is one."""
    entries = [entry for entry in read_manifest().models if entry.model == PREVIEW_DECODER.name]
    return next((Path(entry.folder) for entry in reversed(entries) if entry.whole and _is_here(entry)), None)


def _is_here(entry: Installed) -> bool:
    return all(os.path.exists(file) for file in entry.files)


def _folder(name: str) -> Path | None:
    try:
        path = Path(os.path.expanduser(name)).resolve()
        return path if name and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # no permission, no such user, a name too long or with a zero byte
        return None


def find(model: str | os.PathLike[str]) -> Model:
    """Resolves a catalogue name, a folder in diffusers layout, or the id of a hub repository already on disk.

    Nothing is downloaded. A folder wins over a hub id of the same spelling, a catalogue name over both.

    Raises:
        ModelNotFound: nothing of that name here; the message gives the nearest names, or what to run.
    """
    name = os.fspath(model)
    entry = CATALOGUE.get(name)
    if entry and entry.repository is None:
        return Model(name, DEMO_FOLDER)
    if entry is None and (folder := _folder(name)):
        return Model(str(folder), folder)
    if name in (ours := _by_candela()):
        return ours[name]
    repository = entry.repository if entry else name
    if repository and re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        if folder_in_cache := _snapshot(repository):
            return Model(name, folder_in_cache)
        if entry or not name.startswith("."):
            ids = [e.repository for e in CATALOGUE.values() if e.repository and e.repository != repository]
            near = [] if entry else difflib.get_close_matches(repository, ids, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ModelNotFound(
                f"the model {name!r} is not on this machine: no folder of that name, and the hub repository "
                f"{repository} is not in {hub_cache()}; {hint}To get it: candela install {name}"
            )
    if address := re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)", name):
        raise ModelNotFound(f"{name} is an address. A model of the hub is given by its id: {address[1]}")
    if name.startswith((".", "~")) or name.count("/") > 1 or os.path.isabs(name):
        kind = "is neither a folder nor a weight file" if os.path.exists(name) else "is not there"
        raise ModelNotFound(f"{name} {kind}. Give a folder in diffusers layout, a weight file, or the name of a model")
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(CATALOGUE)}."
    raise ModelNotFound(
        f"no model {name!r}: {hint} A folder in diffusers layout, or the id of a downloaded "
        "hub repository (owner/name), works too"
    )


def installed() -> list[Model]:
    """Everything `find` can resolve by name on this machine: the demo, what Candela installed, then the hub cache's
    diffusers models. A manifest that cannot be read leaves the others; `find` and the doctor tell of it."""
    try:
        ours = _by_candela()
    except DamagedFile:
        ours = {}
    models = [Model("demo", DEMO_FOLDER), *ours.values()]
    names = {entry.repository: name for name, entry in CATALOGUE.items() if entry.repository}
    for root in sorted(hub_cache().glob("models--*--*")):
        repository = root.name.removeprefix("models--").replace("--", "/", 1)
        try:
            folder = _snapshot(repository)
        except OSError:  # another user's, in a cache that several share
            continue
        if folder and names.get(repository, repository) not in ours:
            models.append(Model(names.get(repository, repository), folder))
    return models
