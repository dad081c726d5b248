"""Folders to components: the library's own classes with their weights, checked to be complete."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints.assembling import COUNTED, IGNORED, assemble, files_for
from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.exhausted import ran_out
from candela.checkpoints.filling import build
from candela.checkpoints.folder import HALF
from candela.checkpoints.headers import read_header
from candela.checkpoints.sanity import check_config, check_kinds
from candela.checkpoints.tokenizer_files import check_built, check_files
from candela.checkpoints.tokenizers import load_tokenizer
from candela.errors import CandelaError, DamagedFile, MismatchedModel


@dataclass(frozen=True)
class Components:
    """The parts of one loaded model, each an object of diffusers' or transformers' own class, and an attribute
    by the name that its pipeline gives it: `components.transformer`."""

    by_name: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["by_name"][name]
        except KeyError:
            raise AttributeError(f"this model has no {name!r}: it has {', '.join(self.by_name)}") from None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Those with weights."""
        return {name: part for name, part in self.by_name.items() if isinstance(part, torch.nn.Module)}


def load_components(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Components:
    """Loads every component of `checkpoint` from disk, in evaluation mode; nothing touches the network.

    Raises:
        MismatchedModel: a class the libraries do not have, or weights that do not fill the model exactly.
        DamagedFile: a file whose tensors cannot be read.
    """
    loaded = {name: load_component(part, name, device=device, dtype=dtype) for name, part in light_first(checkpoint)}
    return Components({name: loaded[name] for name in checkpoint.parts})


def light_first(checkpoint: Checkpoint) -> list[tuple[str, Part]]:
    """Its components, those without weights before the others: what is wrong with them is told before gigabytes are
    read."""
    return sorted(checkpoint.parts.items(), key=lambda item: bool(item[1].files))


@torch.inference_mode(False)  # ComfyUI loads within it: such tensors could not be filled by several threads
def load_component(part: Part, name: str, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads the component `name` alone.

    Raises:
        CheckpointError: as `load_components`.
    """
    if part.files:
        module = _from_file(part, name, device, dtype) if part.found else _load_weights(part, name, device, dtype)
        # SDXL's VAE overflows in float16 and says so in its configuration.
        if name == "vae" and dtype == torch.float16 and getattr(module.config, "force_upcast", False):
            module = module.float()
        return module.to(device).eval().requires_grad_(False)
    if part.path.is_dir() and (part.path / "tokenizer_config.json").is_file():
        check_files(part.path)  # a processor's too, which has a tokenizer in it
    if part.class_name == "AutoTokenizer":
        with _library_errors(part.path, f"the {name} cannot be read"):
            tokenizer = load_tokenizer(part.path)
        check_built(tokenizer, part.path)
        return tokenizer
    if part.library != "transformers" and hasattr(built := part_class(part, name), "from_config"):  # a scheduler
        check_config(part.path, part.config)
        check_kinds(part.path, part.config, built)
        with _library_errors(part.path, f"the {name} cannot be made"):
            return built.from_config(part.config)
    import transformers

    cls = getattr(transformers, part.class_name, None)
    if cls is None:
        cls = transformers.AutoTokenizer if part.library == "transformers" else part_class(part, name)
    with _library_errors(part.path, f"the {name} cannot be read"):
        built = cls.from_pretrained(part.path, local_files_only=True, trust_remote_code=False)
    check_built(getattr(built, "tokenizer", built), part.path)
    return built


@torch.inference_mode(False)
def hollow_component(part: Part, name: str, *, dtype: torch.dtype) -> Any:
    """What `load_component` gives for a component with weights, checked as it is there, with its weights on the meta
    device: what describes them is read, and they are not. What the class computes when it is built is there. None
    where only the library can tell what becomes of the files.

    Raises:
        CheckpointError: as `load_component`, as far as headers tell.
    """
    meta = torch.device("meta")
    if part.found:
        module = _from_file(part, name, meta, dtype)
    else:
        cls = _weighted_class(part, name)
        with _library_errors(part.path, f"the weights do not load into {cls.__name__}"):
            module = assemble(part, cls, files_for(part, dtype), device=meta, dtype=dtype)
    return None if module is None else module.eval().requires_grad_(False)


def _from_file(part: Part, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    assert part.found
    check_kinds(part.path, part.config, part_class(part, name))
    with _library_errors(part.path, f"the {name} cannot be read"):
        return build(part.found, device=device, dtype=dtype)


@contextmanager
def _library_errors(path: Path, what: str) -> Iterator[None]:
    """The libraries raise nearly anything for a bad file. Memory that runs out and packages that are absent are
    no fault of the file and go on as what they are."""
    try:
        yield
    except CandelaError:
        raise
    except ImportError as error:
        if ran_out(error):
            raise
        raise MismatchedModel(f"{path}: a Python package is missing to read it. {error}") from error
    except BaseException as error:
        # A panic of Rust code is no Exception, and says so in its name only.
        if ran_out(error) or not (isinstance(error, Exception) or "Panic" in type(error).__name__):
            raise
        raise DamagedFile(f"{path}: {what}: {str(error)[:1000]}. Download it again") from error


@functools.cache
def _homes(library: str) -> tuple[str, ...]:
    """The modules that may hold a class that model_index.json puts into `library`: never one from outside."""
    if library == "transformers":
        return (library,)
    import diffusers.pipelines
    import diffusers.pipelines.deprecated as deprecated

    current, old = (
        {module.name: f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)}
        for package in (diffusers.pipelines, deprecated)
    )
    if library == "diffusers":
        return (library, *old.values())
    return tuple(modules[library] for modules in (current, old) if library in modules)


def part_class(part: Part, name: str) -> Any:
    """The class that `part` loads into: of diffusers or transformers, or one that a pipeline of diffusers brings
    along, which model_index.json names by the pipeline's module (`stable_diffusion`).

    Raises:
        MismatchedModel: no such class.
    """
    homes = map(importlib.import_module, _homes(part.library))
    found = next((cls for home in homes if isinstance(cls := getattr(home, part.class_name, None), type)), None)
    if found is None:
        raise MismatchedModel(
            f"{part.path}: the {name} is a {part.library[:80]}.{part.class_name[:80]}, a class which the "
            f"installed {part.library[:80]} does not have. Candela runs classes of diffusers and transformers only, "
            "never code from a checkpoint"
        )
    return found


def _weighted_class(part: Part, name: str) -> Any:
    cls = part_class(part, name)
    if not issubclass(cls, torch.nn.Module):
        raise MismatchedModel(f"{part.path}: the {name} has weights, and {cls.__name__} is no model that holds any")
    check_config(part.path, part.config, sum(len(read_header(file).tensors) for file in part.files))
    check_kinds(part.path, part.config, cls)
    return cls


def _load_weights(part: Part, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    cls, files = _weighted_class(part, name), files_for(part, dtype)
    with _library_errors(part.path, f"the weights do not load into {cls.__name__}"):
        if whole := assemble(part, cls, files, device=device, dtype=dtype):
            return whole
        module, info = cls.from_pretrained(
            part.path,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below
            dtype=dtype,
            variant=HALF if f".{HALF}" in files[0].name else None,
        )
    missing = sorted(info["missing_keys"])
    unexpected = sorted(
        key for key in info["unexpected_keys"] if not key.startswith(IGNORED) and not key.endswith(COUNTED)
    )
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    problems = [
        f"{len(keys)} {label} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for label, keys in [("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)]
        if keys
    ]
    if problems:
        raise MismatchedModel(
            f"{part.path}: the weights do not fit {cls.__name__} as its config.json describes it: "
            f"{'; '.join(problems)}. The configuration and the weights must come from the same model"
        )
    return module
