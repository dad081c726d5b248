"""A model folder in diffusers layout, read from its JSON files and weight headers alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.headers import json_text, read_header, reading
from candela.checkpoints.headers.header import open_regular
from candela.errors import DamagedFile, MismatchedModel, ModelNotFound

# What a component without weights is built from, by a word of its class; everything else is a model with config.json.
CONFIG_NAMES = {
    "Scheduler": ("scheduler_config.json",),
    "Guidance": ("guider_config.json",),
    "Tokeniz": ("tokenizer_config.json",),
    "Processor": ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"),
    "FeatureExtractor": ("preprocessor_config.json",),
}
STEMS = ("diffusion_pytorch_model", "model")
MAX_JSON = 16_000_000  # bytes; the index of a language model's shards has 3 MB at most
MAX_SHARDS = 500
PLAIN = re.compile(r"[\w-][\w.+ -]{0,200}", re.ASCII)  # what one file or folder may call another: a name, never a path
HALF = "fp16"  # the one variant of weights that is loaded: model.fp16.safetensors


def read_folder(path: Path, model: str | None = None) -> Checkpoint:
    """Reads `model_index.json` and every component's configuration, and checks every weight file's header.

    Raises:
        ModelNotFound: no `model_index.json`.
        MismatchedModel: a component that `model_index.json` names is missing.
        DamagedFile: a JSON or weight file that cannot be read.
    """
    index_file = path / "model_index.json"
    if not index_file.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise ModelNotFound(
            f"{path} has no model_index.json, so it is not a model in diffusers layout (it holds: {found}). "
            "Give the folder that contains model_index.json, transformer, text_encoder, tokenizer, vae and scheduler"
        )
    index = read_json(index_file)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise DamagedFile(f"{index_file} names no pipeline (_class_name). Download it again")
    parts: dict[str, Part] = {}
    options: dict[str, Any] = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
            if not PLAIN.fullmatch(name):
                raise DamagedFile(
                    f"{index_file} names the component {name[:80]!r}, which is no plain name. A model's files lie in "
                    "its own folder; download it again"
                )
            parts[name] = _part(path / name, name, *value)
        elif not name.startswith("_"):
            options[name] = None if value == [None, None] else value
    settings = path / "candela.json"
    defaults = read_json(settings).get("defaults", {}) if settings.is_file() else {}
    if not isinstance(defaults, dict):
        raise DamagedFile(f"{settings}: 'defaults' must be an object of settings. Correct or remove the file")
    return Checkpoint(model or str(path), path, pipeline, parts, defaults, options=options)


def _part(folder: Path, name: str, library: str, class_name: str) -> Part:
    config_names = next((names for word, names in CONFIG_NAMES.items() if word in class_name), None)
    if config_names is None and name.startswith("tokenizer"):
        config_names = CONFIG_NAMES["Tokeniz"]
    candidates = [folder / config_name for config_name in config_names or ("config.json",)]
    config_file = next((file for file in candidates if file.is_file()), None)
    if config_file is None:
        raise MismatchedModel(
            f"{folder.parent}: the component {name!r} is missing: model_index.json names it, but there is no "
            f"{folder.name}/{candidates[0].name}. Download the model again, or copy the {folder.name} folder into place"
        )
    files = [] if config_names else weight_files(folder) or weight_files(folder, HALF)
    if not files and not config_names:
        _refuse_without_weights(folder)
    return Part(folder, library, class_name, read_json(config_file), tuple(files))


def read_component(path: Path, name: str) -> Part:
    """Reads a component's own folder, outside a model: its class is what its configuration names.

    Raises:
        MismatchedModel: it has no configuration, or no weights.
        DamagedFile: a JSON or weight file that cannot be read.
    """
    if name == "tokenizer":
        if not (path / "tokenizer_config.json").is_file():
            raise MismatchedModel(f"{path} is no tokenizer's folder: it has no tokenizer_config.json. Give another one")
        return _part(path, name, "transformers", "AutoTokenizer")
    config_file = path / ("scheduler_config.json" if name == "scheduler" else "config.json")
    if not config_file.is_file():
        kind, found = name or "model", ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        files = any(p.suffix.lower() in (".safetensors", ".gguf") for p in path.iterdir())
        advice = ". Give the weight files in it, each by itself" if files else ""
        raise MismatchedModel(f"{path} is no {kind} folder: it has no {config_file.name} (it holds: {found}){advice}")
    config = read_json(config_file)
    architectures = config.get("architectures")
    class_name = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else ""
    )
    if not isinstance(class_name, str) or not class_name:
        raise MismatchedModel(f"{config_file} names no class (_class_name or architectures). Download it again")
    return _part(path, name, "diffusers" if "_class_name" in config else "transformers", class_name)


def read_json(path: Path) -> dict[str, Any]:
    with reading(path), open_regular(path) as file:
        data = file.read(MAX_JSON + 1)
    try:
        if len(data) > MAX_JSON:
            raise ValueError(f"it is longer than {MAX_JSON} bytes")
        value = json_text.parse(data)
    except ValueError as error:
        raise DamagedFile(f"{path} is not readable JSON ({str(error)[:200]}). Download it again") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} holds a {type(value).__name__} where an object was expected. Download it again")
    return value


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors files that a component's folder is loaded from, their headers checked: those of a sharded
    index, or one file; none if there are none of this variant.

    Raises:
        MismatchedModel: a shard is missing, or is elsewhere than in the folder.
        DamagedFile: a header or an index that cannot be read.
    """
    dotted = f".{variant}" if variant else ""
    for stem in STEMS:
        index_file = folder / f"{stem}.safetensors.index{dotted}.json"
        single = folder / f"{stem}{dotted}.safetensors"
        files = _shards(folder, index_file) if index_file.is_file() else [single] if single.is_file() else []
        for file in files:
            read_header(file)
        if files:
            return files
    return []


def _shards(folder: Path, index_file: Path) -> list[Path]:
    shards = read_json(index_file).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise DamagedFile(f"{index_file} holds no weight_map of file names. Download it again")
    names = sorted(set(shards.values()))
    if odd := next((name for name in names if not PLAIN.fullmatch(name) or not name.endswith(".safetensors")), None):
        raise MismatchedModel(
            f"{index_file} names the shard {odd[:80]!r}: shards are .safetensors files in the index's own folder. "
            "Download the model again"
        )
    if len(names) > MAX_SHARDS:
        raise MismatchedModel(f"{index_file} names {len(names)} shards; no model has more than {MAX_SHARDS}")
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise MismatchedModel(
                f"{folder}: the shard {file.name} that {index_file.name} names is missing "
                f"({sum(f.is_file() for f in files)} of {len(files)} are here). Download the rest"
            )
    return files


def _refuse_without_weights(folder: Path) -> NoReturn:
    others = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".ckpt", ".pth"})
    if others:
        raise MismatchedModel(
            f"{folder} holds only {', '.join(others)}: such files can run code when opened and are refused. "
            "Download the safetensors version"
        )
    raise MismatchedModel(f"{folder} holds no .safetensors weights. Download the model again")
