"""What a user typed for a model -> what its files say of themselves.

A model is a catalogue name, a folder in diffusers layout, the id of a hub repository already on disk, one weight file,
or its components one by one: `transformer=FILE,text_encoder=FILE,vae=FILE`, where each may be a weight file, a
component's folder, or a model that has one. `MODEL,vae=FILE` is a model with another part.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.catalogue import CATALOGUE, Model, find, installed
from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.configuration import config_metadata
from candela.checkpoints.contents import Contents, Found, read_contents
from candela.checkpoints.fitting import check_fit
from candela.checkpoints.folder import read_component, read_folder
from candela.checkpoints.headers import reading
from candela.checkpoints.published import QWEN_FOLDER
from candela.checkpoints.variants import SCHEDULERS, Variant, variant_of
from candela.errors import CheckpointError, MismatchedModel, ModelNotFound

NEEDED = ("transformer", "text_encoder", "vae")
COMPONENTS = (*NEEDED, "tokenizer", "scheduler")
# The catalogue's model from which a family's tokenizer may be taken.
TOKENIZERS = {"z-image": "z-image-turbo", "lumina-image-2": "lumina-image-2", "lumina-next": "lumina-next-sft"}
WEIGHT_FILES = (".safetensors", ".sft", ".gguf")


def read_checkpoint(model: str | os.PathLike[str]) -> Checkpoint:
    """Resolves `model` and reads its headers; nothing is downloaded.

    Raises:
        ModelNotFound, MismatchedModel, DamagedFile: it is not here, or its files cannot be used.
    """
    name = os.fspath(model)
    with reading(name):
        places = components(name)
        return read_model(find(name)) if places is None else _assembled(name, places)


def read_model(found: Model) -> Checkpoint:
    """What the files of a model that was found say of themselves.

    Raises:
        CheckpointError: they cannot be used.
    """
    with reading(found.folder):
        if found.parts:
            return _assembled(found.name, found.parts, known_as=found.name)
        return read_folder(found.folder, found.name)


def components(model: str) -> dict[str, str] | None:
    """What `model` names for each component, where it is not one folder or name: `{"": file}` for a single file.

    Raises:
        ModelNotFound: a component that there is not, twice the same, or one that names nothing.
    """
    first, *others = re.split(rf",(?=\s*(?:{'|'.join(COMPONENTS)})=)", model)
    listed = re.match(r"\s*\w+=", first) and not os.path.exists(first)
    if (listed or others) and not os.path.exists(model):
        pairs = [pair.partition("=") for pair in ([first, *others] if listed else others)]
        places = {key.strip(): value.strip() for key, _, value in pairs}
        unknown = [key for key in places if key not in COMPONENTS]
        if unknown or len(places) != len(pairs) or not all(places.values()):
            wrong = f"{unknown[0]!r} is no component" if unknown else "a component is given twice, or as nothing"
            raise ModelNotFound(f"{model!r}: {wrong}. Give each of {', '.join(COMPONENTS)} at most once, as NAME=PATH")
        return places if listed else dict.fromkeys(NEEDED, first.strip()) | places
    path = Path(os.path.expanduser(model))  # unlike Path's, leaves ~nobody as it is
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        return None
    if not is_file:
        _refuse_missing_file(path, model)
    return {"": model} if is_file else None


def _refuse_missing_file(path: Path, typed: str) -> None:
    if path.suffix.lower() in WEIGHT_FILES and not path.exists():
        raise ModelNotFound(f"there is no file {typed}. Check its name, and the folder that it is looked for in")


def _assembled(name: str, places: dict[str, str], known_as: str = "") -> Checkpoint:
    """One checkpoint from the parts at `places`; called by them, where it has no name that it is `known_as`."""
    opened: dict[str, Contents | Checkpoint | Part] = {}
    parts: dict[str, Part] = {}
    for component, place in places.items():
        source = opened[place] = opened.get(place) or _open(component, place)
        if isinstance(source, Contents) and source.found and source.rest:
            raise MismatchedModel(
                f"{place} holds {_holds(source)}, and {len(source.rest)} tensors beside that belong to neither "
                f"({', '.join(name[:80] for name in source.rest[:3])}{', ...' if len(source.rest) > 3 else ''}). "
                "Is it what it claims to be?"
            )
        for wanted in (component,) if component else NEEDED:
            if part := _part(source, wanted):
                parts[wanted] = part
            elif component:
                raise MismatchedModel(f"{place} holds {_holds(source)}, not a {component.replace('_', ' ')}")
    transformer = parts.get("transformer")
    if transformer is None:
        only = "" if parts else f"{name} holds {_holds(next(iter(opened.values())))}. "
        given = f"; given: {', '.join(parts)}" if parts else ""
        raise MismatchedModel(f"{only}A model needs a transformer{given}. Add it: {_usage(parts)}")
    architecture = next((a for a in TRANSFORMERS if a.class_name == transformer.class_name), None)
    if architecture is None:
        raise MismatchedModel(
            f"{transformer.path} is a {transformer.class_name}. From parts, Candela runs "
            f"{', '.join(a.name for a in TRANSFORMERS)}; give the whole folder of another model"
        )
    if absent := [each for each in NEEDED if each not in parts]:
        raise MismatchedModel(
            f"{transformer.path} is the transformer of a {architecture.name} model; "
            f"{' and '.join(each.replace('_', ' ') for each in absent)} {'are' if len(absent) > 1 else 'is'} missing. "
            f"Add: {_usage(parts)}. In place of FILE, the name or folder of a whole model does as well"
        )
    check_fit(parts)
    source = opened[places.get("transformer", places.get("", ""))]
    variant = variant_of(architecture.name, transformer.path, source.header if isinstance(source, Contents) else None)
    defaults = source.defaults if isinstance(source, Checkpoint) else {}
    if isinstance(source, Contents):
        given_defaults = config_metadata(source.header).get("defaults")
        defaults = given_defaults if isinstance(given_defaults, dict) else {}
    if "scheduler" not in parts:
        parts["scheduler"] = _scheduler(source, architecture.name, variant)
    if "tokenizer" not in parts:
        parts["tokenizer"] = tokenizer_of(
            opened[places.get("text_encoder", places.get("", ""))], parts["text_encoder"], architecture.name
        )
    told = isinstance(source, Checkpoint) or "scheduler" in places  # its scheduler, then, says which one it is
    name = ",".join(f"{component}={_absolute(place)}" for component, place in places.items() if component)
    return Checkpoint(
        known_as or name or _absolute(places[""]),
        transformer.path,
        variant.pipeline,
        parts,
        defaults,
        assumed="" if told else variant.assumed,
    )


def _absolute(place: str) -> str:
    """The same from any folder: a picture's record names the model so."""
    return os.path.abspath(os.path.expanduser(place)) if os.path.exists(os.path.expanduser(place)) else place


def parts_at(place: str) -> dict[str, Part]:
    """The components that `place` has, by name: a weight file, a component's folder, or a whole model.

    Raises:
        ModelNotFound, MismatchedModel, DamagedFile: it is not here, or cannot be used.
    """
    with reading(place):
        source = _open("", place)
    if isinstance(source, Part):
        return {kind_of(source) or "text_encoder": source}
    return {name: part for name in NEEDED if (part := _part(source, name))}


def kind_of(part: Part) -> str:
    """Which component a folder holds, by its class; empty where that does not tell."""
    kinds = {"Transformer": "transformer", "DiT": "transformer", "UNet": "transformer", "Autoencoder": "vae",
             "Scheduler": "scheduler", "Tokenizer": "tokenizer"}  # fmt: skip
    named = next((kind for word, kind in kinds.items() if word in part.class_name), "")
    return named or ("text_encoder" if part.library == "transformers" else "")


def _open(component: str, place: str) -> Contents | Checkpoint | Part:
    """What is at `place`: a weight file's contents, a whole model, or a component's folder."""
    path = Path(os.path.expanduser(place))
    if path.is_file():
        return read_contents(path)
    _refuse_missing_file(path, place)
    if path.is_dir() and not (path / "model_index.json").is_file():
        return read_component(path, component)
    if component in ("tokenizer", "scheduler"):
        raise ModelNotFound(f"there is no folder {place}. Give the {component}'s own folder")
    return read_model(find(place))


def _part(source: Contents | Checkpoint | Part, component: str) -> Part | None:
    if isinstance(source, Part):
        return source if kind_of(source) in (component, "") else None
    if isinstance(source, Checkpoint):
        return source.parts.get(component)
    found = source.get(component)
    return None if found is None else part_of(found)


def part_of(found: Found) -> Part:
    """A component inside a weight file, as a part of a checkpoint."""
    path, architecture = found.header.path, found.architecture
    return Part(path, architecture.library, architecture.class_name, found.config, (path,), found)


def _holds(source: Contents | Checkpoint | Part) -> str:
    if isinstance(source, Contents):
        from candela.checkpoints.resemblance import describe

        return describe(source)
    if isinstance(source, Checkpoint):
        return f"{', '.join(source.parts)} of a {source.pipeline}"
    return f"a {source.class_name}"


def _usage(parts: dict[str, Part]) -> str:
    return ",".join(f"{name}={parts[name].path if name in parts else 'FILE'}" for name in NEEDED)


def _scheduler(source: Contents | Checkpoint | Part, family: str, variant: Variant) -> Part:
    """The model's own where it comes with one, else the one that the variant is published with."""
    if isinstance(source, Checkpoint) and "scheduler" in source.parts:
        return source.parts["scheduler"]
    config = SCHEDULERS[family, variant.name]
    path = Path(family)
    if isinstance(source, Contents):
        path = source.header.path
        given = config_metadata(source.header).get("scheduler")
        config = given if isinstance(given, dict) else config
    return Part(path, "diffusers", "FlowMatchEulerDiscreteScheduler", config)


def tokenizer_of(source: Contents | Checkpoint | Part, text_encoder: Part, family: str) -> Part:
    """The text encoder's own: beside it in a diffusers folder, inside its file, or that of a whole model of the same
    family on this machine.

    Raises:
        MismatchedModel: none of them.
    """
    if isinstance(source, Checkpoint) and "tokenizer" in source.parts:
        return source.parts["tokenizer"]
    if isinstance(source, Contents):
        if source.header.format == "gguf" and "tokenizer.ggml.tokens" in source.header.metadata:
            return Part(source.header.path, "transformers", "AutoTokenizer")
        if source.sentencepiece:
            return Part(source.header.path, "transformers", "AutoTokenizer")
    for beside in beside_tokenizers(text_encoder.path, text_encoder.class_name):
        if (beside / "tokenizer_config.json").is_file():
            return Part(beside, "transformers", "AutoTokenizer")
    for model in installed():
        if model.name == "demo" or (model.parts and "tokenizer" not in model.parts):
            continue
        with contextlib.suppress(CheckpointError):  # one that is broken is no reason to stop
            folder = read_model(model)
            same = folder.parts.get("text_encoder")
            alike = same and same.config.get("vocab_size") == text_encoder.config.get("vocab_size")
            if same and alike and same.class_name == text_encoder.class_name and "tokenizer" in folder.parts:
                return folder.parts["tokenizer"]
    repository = CATALOGUE[TOKENIZERS[family]].repository
    raise MismatchedModel(
        f"{text_encoder.path} brings no tokenizer. Add ,tokenizer=FOLDER to the model: the tokenizer folder of any "
        f"{family} model; `candela install {TOKENIZERS[family]}` brings one. To download one alone: hf download "
        f"{repository} --include 'tokenizer/*' (it prints the folder; add /tokenizer). A GGUF text encoder has one"
    )


def beside_tokenizers(text_encoder: Path, class_name: str) -> list[Path]:
    """Where a text encoder's tokenizer may lie beside it: in a diffusers folder, or where `candela install` puts it."""
    folders = [text_encoder.parent / "tokenizer"]
    return [*folders, text_encoder.parent / QWEN_FOLDER] if class_name.startswith("Qwen3") else folders
