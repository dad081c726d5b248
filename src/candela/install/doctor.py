"""What works on this machine, what does not, and what to do about it, as lines that fit on one screen."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import candela
from candela.checkpoints.manifest import Manifest, home, read_manifest
from candela.checkpoints.published import PUBLICATIONS
from candela.errors import DamagedFile, InstallError
from candela.install.card import Card, find_card, fits, pick_precision
from candela.install.comfyui import ComfyUI, open_comfyui, quoted, search
from candela.install.dependencies import read_requirements
from candela.install.environment import read_environment
from candela.install.health import examine_models
from candela.install.nodes import check_core, packs_in, python_of, recorded, update_command
from candela.install.pack import find_pack, sha256
from candela.install.probes import Torch, load_pack, probe_torch

OK, WARNING, FAILED = "ok", "warning", "failed"
LITTLE_MEMORY, LITTLE_DISK = 4e9, 10e9  # bytes; the smallest of the large models needs about 8 GB on the disk
GET_TORCH = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class Line:
    """One finding. `remedy`: a command, or where to go; "" where nothing is to be done."""

    name: str
    state: str
    text: str
    remedy: str = ""


def examine(comfyui: Path | None) -> Iterator[Line]:
    """The lines, one after the other: some take seconds. Changes nothing anywhere."""
    card = find_card()
    python = platform.python_version()
    yield Line(
        "candela", OK, f"{candela.__version__}, with Python {python} ({sys.executable}) on {platform.platform()}"
    )
    torch = probe_torch(Path(sys.executable))
    yield _torch("torch", torch, card, Path(sys.executable))
    yield _gpu(card, torch)
    yield _memory()
    found, lines = _comfyui(comfyui)
    yield from _disks(found)
    yield _hub()
    yield from lines
    manifest, problem = _manifest()
    if found:
        yield from _inside(found, manifest, card, torch)
    if problem:
        yield problem
    else:
        for one in examine_models(manifest, found):
            yield Line(f"model {one.name}", one.state, one.text, one.remedy)
    yield _plan(card, torch, managed=found is not None)


def _torch(name: str, torch: Torch, card: Card | None, python: Path) -> Line:
    """Can it use the card that is there?"""
    if torch.problem:
        return Line(name, FAILED, f"cannot be imported in {python}: {torch.problem}", GET_TORCH)
    text = f"{torch.version}, uses {torch.device or 'the CPU'}"
    if card and not torch.device and not torch.built_for:
        return Line(name, WARNING, f"{text}: it was built without CUDA, and cannot use {card.name}", GET_TORCH)
    if card and not torch.device:
        text = f"{text}: built for CUDA {torch.built_for}, it cannot use {card.name} with driver {card.driver}"
        return Line(name, FAILED, text, "update NVIDIA's driver: https://www.nvidia.com/drivers")
    return Line(name, OK, text)


def _gpu(card: Card | None, torch: Torch) -> Line:
    if card:
        memory = f"{card.vram_bytes / 1e9:.1f} GB, {card.vram_free / 1e9:.1f} GB free"
        return Line("GPU", OK, f"{card.name}, {memory}, driver {card.driver}, compute capability {card.compute}")
    if torch.device:
        return Line("GPU", OK, torch.device)
    return Line(
        "GPU", WARNING, "none found (nvidia-smi is missing, or finds no card): everything runs on the CPU",
        "if there is an NVIDIA card, install its driver: https://www.nvidia.com/drivers",
    )  # fmt: skip


def _memory() -> Line:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"
    if memory.available < LITTLE_MEMORY:
        return Line("memory", WARNING, text, "close other programs before a large model is loaded")
    return Line("memory", OK, text)


def _disks(comfyui: ComfyUI | None) -> Iterator[Line]:
    places = {"disk": home()}
    if comfyui:
        places["ComfyUI's disk"] = comfyui.models["diffusion_models"][0]
    for name, folder in places.items():
        there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        free = shutil.disk_usage(there).free
        text = f"{free / 1e9:.1f} GB free for {folder}"
        if free < LITTLE_DISK:
            other = "set CANDELA_HOME to a folder on another disk" if name == "disk" else "add extra_model_paths.yaml"
            yield Line(name, WARNING, f"{text}; a large model needs 8 to 21 GB", f"free some space, or {other}")
        else:
            yield Line(name, OK, text)


def _hub() -> Line:
    """Where downloads come from. A token is a secret, and so is a password in an address."""
    stored = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "token"
    token = "set" if os.environ.get("HF_TOKEN") or stored.is_file() else "not set (only gated models need one)"
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    return Line("hub", OK, f"{endpoint.hostname or 'HF_ENDPOINT is no address'}, token {token}")


def _comfyui(chosen: Path | None) -> tuple[ComfyUI | None, list[Line]]:
    try:
        found = [open_comfyui(chosen)] if chosen else search()
    except InstallError as error:
        return None, [Line("ComfyUI", FAILED, str(error), "candela doctor --comfyui DIR")]
    if not found:
        text = "none found in the usual places"
        return None, [Line("ComfyUI", WARNING, text, "candela doctor --comfyui DIR, or set COMFYUI_DIR")]
    first, *others = found
    if others:
        text = f"{first.folder}; {len(others)} more: {', '.join(str(one.folder) for one in others)}"
        return first, [Line("ComfyUI", OK, text, "for another one: candela doctor --comfyui DIR")]
    return first, [Line("ComfyUI", OK, str(first.folder))]


def _manifest() -> tuple[Manifest, Line | None]:
    try:
        return read_manifest(), None
    except DamagedFile as error:
        return Manifest(), Line("models", FAILED, str(error), f"move {quoted(home() / 'manifest.json')} away")


def _inside(comfyui: ComfyUI, manifest: Manifest, card: Card | None, own: Torch) -> Iterator[Line]:
    """Its core, its Python, and the nodes in it. `own`: the torch of this Python, which may be the same."""
    yield _core(comfyui)
    try:
        python = python_of(comfyui)
        environment = read_environment(python)
    except InstallError as error:
        yield Line("its Python", FAILED, str(error), "COMFYUI_PYTHON=/path/to/python candela doctor")
        return
    install = f"candela install demo --comfyui {quoted(comfyui.folder)}"
    pack = find_pack()
    requirements = read_requirements(pack.files["pyproject.toml"], pack.files["requirements.txt"])
    yield Line("its Python", OK, f"{environment.version} ({python})")
    torch = own if python == Path(sys.executable) else probe_torch(python)
    yield _torch("its torch", torch, card, python)
    unmet = environment.unmet(environment.needs("Candela", [*requirements.brought, *requirements.own]))
    packs = packs_in(comfyui.custom_nodes)
    if unmet:
        said = [f"{need} ({environment.installed(need.name) or 'not installed'})" for need in unmet]
        yield Line("its packages", FAILED if packs else WARNING, "; ".join(dict.fromkeys(said)), install)
    else:
        yield Line("its packages", OK, "all that Candela needs")
    yield _nodes(comfyui, packs, manifest, python, install, on_cpu=not torch.device)


def _core(comfyui: ComfyUI) -> Line:
    if not comfyui.version:
        return Line("its core", WARNING, "of unknown version: main.py was not found", update_command(comfyui))
    try:
        check_core(comfyui, find_pack())
    except InstallError:
        needs = find_pack().requires_comfyui
        return Line("its core", FAILED, f"{comfyui.version}; the nodes need {needs}", update_command(comfyui))
    return Line("its core", OK, comfyui.version)


def _nodes(comfyui: ComfyUI, packs: list[Path], manifest: Manifest, python: Path, install: str, on_cpu: bool) -> Line:
    if not packs:
        return Line("its nodes", WARNING, "Candela's are not installed", install)
    if len(packs) > 1:
        text = f"Candela is there {len(packs)} times: {', '.join(map(str, packs))}"
        return Line("its nodes", FAILED, text, "remove all but one of these folders")
    (pack,) = packs
    known = recorded(manifest, pack)
    missing = [path for path in known.files if not (pack / path).is_file()]
    edited = [path for path, digest in known.files.items() if path not in missing and sha256(pack / path) not in digest]
    if missing:
        text = f"{len(missing)} of {len(known.files)} files are missing from {pack}, {missing[0]} among them"
        return Line("its nodes", FAILED, text, install)
    if comfyui.core is None:
        return Line("its nodes", WARNING, f"in {pack}; not tried, as main.py was not found", install)
    loaded = load_pack(python, comfyui.core, pack, on_cpu)
    if loaded.problem:
        return Line("its nodes", FAILED, f"{pack} does not load: {loaded.problem}", install)
    text = f"{len(loaded.nodes)} load from {pack}"
    if edited:
        return Line("its nodes", WARNING, f"{text}; edited since: {', '.join(edited[:3])}", install)
    return Line("its nodes", OK, text)


def _plan(card: Card | None, torch: Torch, managed: bool) -> Line:
    """What the largest wish, z-image-turbo, would get here."""
    name = "z-image-turbo"
    offers = PUBLICATIONS[name].split
    precision, reason = pick_precision(name, offers, card, managed)
    total = sum(file.bytes for file in offers[precision])
    if card:
        how = "one component at a time on the card" if managed else "all of it on the card"
        good = fits(name, precision, card, managed)
        text = f"{name} in {precision}, {how}: {reason}"
        smaller = (
            "a smaller --width and --height may do" if managed else f"candela plan {name} says how it runs all the same"
        )
        return Line("plan", OK if good else WARNING, text, "" if good else smaller)
    if torch.device:
        return Line("plan", OK, f"{name} in {precision} ({total / 1e9:.1f} GB) on {torch.device}")
    import psutil

    memory = psutil.virtual_memory().total
    text = f"on the CPU in float32: the demo in seconds; {name} needs {2 * total / 1e9:.0f} GB of memory, and minutes"
    if memory < 2 * total:
        there = f"{text}; there are {memory / 1e9:.0f} GB"
        return Line("plan", WARNING, there, "candela generate 'a red star' makes a picture with the demo")
    return Line("plan", OK, text)
