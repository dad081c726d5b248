"""A model folder in diffusers layout, read from its JSON files and weight headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.headers import read_header
from candela.errors import DamagedFile, MismatchedModel, ModelNotFound

COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
WITH_WEIGHTS = ("transformer", "text_encoder", "vae")
CONFIG_NAMES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}


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
    classes = {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    }
    parts: dict[str, Part] = {}
    for name in (name for name in COMPONENTS if name in classes):  # what else a pipeline has is its family's affair
        config_name = CONFIG_NAMES.get(name, "config.json")
        if not (path / name / config_name).is_file():
            raise MismatchedModel(
                f"{path}: the component {name!r} is missing: model_index.json names it, but there is no "
                f"{name}/{config_name}. Download the model again, or copy the {name} folder into place"
            )
        parts[name] = _part(path / name, name, *classes[name])
    settings = path / "candela.json"
    defaults = read_json(settings).get("defaults", {}) if settings.is_file() else {}
    if not isinstance(defaults, dict):
        raise DamagedFile(f"{settings}: 'defaults' must be an object of settings. Correct or remove the file")
    return Checkpoint(model or str(path), path, pipeline, parts, defaults)


def read_component(path: Path, name: str) -> Part:
    """Reads a component's own folder, outside a model: its class is what its configuration names.

    Raises:
        MismatchedModel: it has no configuration, or no weights.
        DamagedFile: a JSON or weight file that cannot be read.
    """
    config_file = path / CONFIG_NAMES.get(name, "config.json")
    if not config_file.is_file():
        kind, found = name or "model", ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise MismatchedModel(f"{path} is no {kind} folder: it has no {config_file.name} (it holds: {found})")
    config = read_json(config_file)
    class_name = config.get("_class_name") or next(iter(config.get("architectures") or [""]))
    if name != "tokenizer" and not class_name:
        raise MismatchedModel(f"{config_file} names no class (_class_name or architectures). Download it again")
    library = "transformers" if name in ("tokenizer", "text_encoder") else "diffusers"
    return _part(path, name, library, class_name or "AutoTokenizer")


def _part(path: Path, name: str, library: str, class_name: str) -> Part:
    files = _weight_files(path) if name in WITH_WEIGHTS else []
    for file in files:
        read_header(file)
    return Part(path, library, class_name, read_json(path / CONFIG_NAMES.get(name, "config.json")), tuple(files))


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not readable JSON ({error}). Download it again") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} holds a {type(value).__name__} where an object was expected. Download it again")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a component's folder is loaded from: a sharded index, or one file."""
    for stem in ("diffusion_pytorch_model", "model"):
        index_file = folder / f"{stem}.safetensors.index.json"
        if index_file.is_file():
            shards = read_json(index_file).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise DamagedFile(f"{index_file} holds no weight_map of file names. Download it again")
            files = [folder / name for name in sorted(set(shards.values()))]
            for file in files:
                if file.name not in shards.values() or not file.is_file():
                    raise MismatchedModel(
                        f"{folder}: the shard {file.relative_to(folder)} that {index_file.name} names is missing "
                        f"({sum(f.is_file() for f in files)} of {len(files)} are here). Download the rest"
                    )
            return files
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    others = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".ckpt", ".pth"})
    if others:
        raise MismatchedModel(
            f"{folder} holds only {', '.join(others)}: such files can run code when opened and are refused. "
            "Download the safetensors version"
        )
    raise MismatchedModel(f"{folder} holds no .safetensors weights. Download the model again")
