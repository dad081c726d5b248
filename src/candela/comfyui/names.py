"""Which models the Load node lists, and where they lie: ComfyUI's model folders, then Candela's catalogue."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from candela.checkpoints import Checkpoint, read_checkpoint
from candela.checkpoints.catalogue import CATALOGUE, find, installed
from candela.checkpoints.contents import read_contents
from candela.checkpoints.opening import NEEDED, WEIGHT_FILES, beside_tokenizers, components
from candela.checkpoints.published import PUBLICATIONS
from candela.errors import MismatchedModel, ModelNotFound

FOLDER = "diffusers"  # ComfyUI's name for the folder type
FILES = {"": ("checkpoints", "diffusion_models"), "transformer": ("checkpoints", "diffusion_models"),
         "text_encoder": ("text_encoders",), "vae": ("vae",)}  # fmt: skip
OWN = "the model's own"


def listed() -> list[str]:
    """The demo, folders in diffusers layout under models/diffusers (extra model paths included), weight files under
    models/checkpoints and models/diffusion_models, what the hub cache holds, and the rest of the catalogue, which says
    what to run when it is chosen."""
    hub = (model.name for model in installed())
    return list(dict.fromkeys(["demo", *sorted(_folders()), *_files("transformer"), *hub, *CATALOGUE]))


def listed_parts(component: str) -> list[str]:
    """What may replace a model's own `component` (text_encoder or vae)."""
    return [OWN, *_files(component)]


def chosen(model: str, text_encoder: str = OWN, vae: str = OWN) -> str:
    """The three choices of the Load node as one name, for the functions below."""
    parts = {"text_encoder": text_encoder, "vae": vae}
    return ",".join([model, *(f"{component}={part}" for component, part in parts.items() if part != OWN)])


def location(name: str) -> str:
    """-> what `Engine.load` takes for `name`: a folder or files of ComfyUI's, else a catalogue name or hub id.

    Raises:
        ModelNotFound: nothing of that name; the message says where it was looked for.
        MismatchedModel: a file without the rest of a model.
    """
    places = _places(name)
    if "" in places and not Path(places[""]).is_file():
        return places[""]
    if "" in places:
        places = dict.fromkeys(NEEDED, places[""])
    model = places.get("transformer", "")
    held = read_contents(Path(model)) if Path(model).is_file() else None
    if held and held.get("transformer") and any(places.get(c) == model and not held.get(c) for c in NEEDED):
        raise MismatchedModel(
            f"{name} holds {' and '.join(f'a {found.title}' for found in held.found)}, and a model needs a "
            "transformer, a text encoder and a VAE. Choose the others in text_encoder and vae of the Load node"
        )
    if "tokenizer" not in places and (tokenizer := _qwen_tokenizer(Path(places.get("text_encoder", "")))):
        places["tokenizer"] = tokenizer
    return ",".join(f"{component}={place}" for component, place in places.items())


def _places(name: str) -> dict[str, str]:
    """Where each component that `name` names lies; under "" for a whole model."""
    split = components(name) if re.search(r"(^|,)\s*\w+=", name) else None
    if split is None and name not in _folders() and (published := _published(name)):
        return published
    return {component: _place(component, value) for component, value in (split or {"": name}).items()}


def _place(component: str, name: str) -> str:
    folders = _folders()
    if name in folders:
        return str(folders[name])
    if file := (_files(component) | _files("")).get(name):  # a part may be the whole model's
        return file
    if published := _published(name).get(component):
        return published
    root = _roots()[0]
    if name in CATALOGUE or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and ".." not in name):
        try:
            find(name)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}. Or put its folder into {root} under the name {name}") from error
        return name
    choices = list(_files(component)) if component in ("text_encoder", "vae") else listed()
    near = difflib.get_close_matches(name, choices, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose one from the list."
    files = " or ".join(folder_paths.get_folder_paths(kind)[0] for kind in FILES.get(component, ()))
    raise ModelNotFound(
        f"there is no {component.replace('_', ' ') or 'model'} {name!r} here. {hint} A folder in diffusers layout "
        f"appears in the list once it lies in {root}, a weight file in {files}"
    )


def _published(name: str) -> dict[str, str]:
    """The split files that a catalogue's model is published in, where ComfyUI's folders hold all of them: component ->
    path. Whoever put them there, they need no name of their own."""
    publication = PUBLICATIONS.get(name)
    for files in publication.split.values() if publication else ():
        here = {file.component: _named(file.component, file.name) for file in files}
        if all(here.values()):
            return {component: path for component, path in here.items() if path}
    return {}


def _named(component: str, name: str) -> str | None:
    return next((path for path in _files(component).values() if Path(path).name == name), None)


def _files(component: str) -> dict[str, str]:
    """Weight files that may be `component`, by the name that the list shows -> path; an earlier root wins."""
    found: dict[str, str] = {}
    kinds = FILES.get(component, ())
    for kind in kinds:
        for root in folder_paths.get_folder_paths(kind):
            for place, _, files in os.walk(root, followlinks=True):
                for file in sorted(files):
                    if file.lower().endswith(WEIGHT_FILES):
                        path = Path(place) / file
                        name = path.relative_to(root).as_posix()
                        found.setdefault(f"{kind}/{name}" if len(kinds) > 1 else name, str(path))
    return found


def _qwen_tokenizer(text_encoder: Path) -> str | None:
    """ComfyUI's copy of Qwen's vocabulary, for a text encoder of that size whose file brings none."""
    if not text_encoder.is_file():
        return None
    contents = read_contents(text_encoder)
    found = contents.get("text_encoder")
    if found is None or found.architecture.name != "qwen3" or "tokenizer.ggml.tokens" in contents.header.metadata:
        return None
    if any(folder.is_dir() for folder in beside_tokenizers(text_encoder, found.architecture.class_name)):
        return None  # its own
    import comfy

    folder = Path(comfy.__path__[0]) / "text_encoders" / "qwen25_tokenizer"
    words = found.shapes["embed_tokens.weight"][0]
    return str(folder) if words >= 151643 and (folder / "vocab.json").is_file() else None


def fingerprint(name: str) -> str:
    """Changes when a file of the model does: names, sizes and times of change.

    Raises:
        ModelNotFound: as `location`.
    """
    digest = hashlib.sha256()
    roots = [root for place in _places(name).values() for root in _found(place)]
    for root in roots:
        for path in _below(root):
            with contextlib.suppress(OSError):  # a link to nowhere; loading will say so
                stat = os.stat(path)
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"{' '.join(roots)} {digest.hexdigest()}"


def _found(place: str) -> list[str]:
    if os.path.exists(place):
        return [place]
    model = find(place)
    return [*model.parts.values()] or [str(model.folder)]


def _below(root: str) -> Iterator[str]:
    """Every file of a folder, in a fixed order; a file itself."""
    if os.path.isfile(root):
        yield root
    for place, below, files in os.walk(root, followlinks=True):
        below.sort()
        for file in sorted(files):
            yield os.path.join(place, file)


def checkpoint(name: str) -> Checkpoint:
    """What the files of `name` say of themselves.

    Raises:
        CheckpointError: it is not here, or its files cannot be used.
    """
    return read_checkpoint(location(name))


def listed_loras() -> list[str]:
    """The safetensors files under models/loras (extra model paths included)."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith((".safetensors", ".sft"))]


def lora_file(name: str) -> str:
    """
    Raises:
        ModelNotFound: nothing of that name; the message says where it was looked for.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        listed = listed_loras()
        near = difflib.get_close_matches(name, listed, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Choose one from the list."
        places = folder_paths.get_folder_paths("loras")
        raise ModelNotFound(f"there is no LoRA {name!r} here. {hint} Files in {places[0]} appear in the list")
    return path


def lora_fingerprint(name: str) -> str:
    """Changes when the file does, or peft's settings beside it.

    Raises:
        ModelNotFound: as `lora_file`.
    """
    from candela.engine.adapters import stamp

    path = lora_file(name)
    return f"{path} {stamp(Path(path))}"


def _roots() -> list[str]:
    return folder_paths.get_folder_paths(FOLDER)


def _folders() -> dict[str, Path]:
    """Every folder with a model_index.json, by its path below the root; an earlier root wins."""
    found: dict[str, Path] = {}
    for root in _roots():
        for place, below, files in os.walk(root, followlinks=True):
            if "model_index.json" in files:
                found.setdefault(Path(place).relative_to(root).as_posix(), Path(place))
                below.clear()
    return found
