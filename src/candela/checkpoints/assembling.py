"""A component's class from its folder, built without memory for its weights, which are then put in as they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints.building import default_dtype, without_memory
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.contents import FLOATS
from candela.checkpoints.folder import HALF, weight_files
from candela.checkpoints.headers import StoredTensor, read_header
from candela.checkpoints.reading import Wanted, read_tensors

# A language model's output head is stored beside its text encoder and not needed by it.
IGNORED = ("lm_head.",)
COUNTED = (".position_ids",)  # 0, 1, 2, ...: older CLIP files store what newer code counts


def assemble(part: Part, cls: Any, files: tuple[Path, ...], *, device: torch.device, dtype: torch.dtype) -> Any:
    """-> the component, whole; None if its files do not fit `cls` to the letter. Then the library itself has to read
    them, as it knows the names that older versions gave, and says what is missing.

    On the meta device nothing is read; a component whose weights are tied is None there too, as what is put in later
    would part them.

    Raises:
        DamagedFile: a weight file that cannot be read.
        Whatever the library raises for a configuration that it cannot build from.
    """
    if part.config.get("quantization_config"):
        return None
    with default_dtype(dtype), without_memory():
        module = _empty(part, cls, dtype)
    if module is None:
        return None
    expected = module.state_dict(keep_vars=True)
    sources = places(module, files)
    if sources is None:
        return None
    wanted = {
        name: Wanted(file, tensor, _dtype(module, name, expected[name].dtype, dtype))
        for name, (file, tensor) in sources.items()
    }
    tied = getattr(module, "all_tied_weights_keys", {})
    if device.type == "meta":
        values = {name: torch.empty(one.stored.shape, dtype=one.dtype, device=device) for name, one in wanted.items()}
        module.load_state_dict(values, strict=False, assign=True)
        return None if tied else module
    module.load_state_dict(read_tensors(wanted, device), strict=False, assign=True)
    if tied:
        module.tie_weights(missing_keys=expected.keys() - wanted.keys(), recompute_mapping=False)
    return None if any(value.is_meta for value in module.state_dict().values()) else module


def files_for(part: Part, dtype: torch.dtype) -> tuple[Path, ...]:
    """The weight files that a folder's component is loaded from in `dtype`: there may be smaller ones for float16."""
    return tuple((dtype == torch.float16 and weight_files(part.path, HALF)) or part.files)


def places(module: torch.nn.Module, files: tuple[Path, ...]) -> dict[str, tuple[Path, StoredTensor]] | None:
    """Where `files` hold each tensor of `module`'s state, by the module's names; those of tied weights may be absent.
    None if any other is, or has another shape, or is a number of another kind, or one is left over."""
    stored = {name: (file, tensor) for file in files for name, tensor in read_header(file).tensors.items()}
    expected = module.state_dict(keep_vars=True)
    sources = _sources(stored, expected, str(getattr(module, "base_model_prefix", "")))
    tied: Any = getattr(module, "all_tied_weights_keys", {})
    if sources.keys() - expected.keys() or expected.keys() - sources.keys() - tied.keys() - set(tied.values()):
        return None
    found = {name: stored[source] for name, source in sources.items()}
    for name, (_, tensor) in found.items():
        place = expected[name]
        if tuple(place.shape) != tensor.shape or (tensor.dtype in FLOATS) != place.is_floating_point():
            return None
    return found


def _empty(part: Part, cls: Any, dtype: torch.dtype) -> Any:
    """The class with its configuration; None where only the library can load it."""
    import diffusers.models.modeling_utils as diffusers_models

    if issubclass(cls, diffusers_models.ModelMixin):
        # Transformer2DModel turns into whatever class its configuration stands for today.
        legacy = issubclass(cls, diffusers_models.LegacyModelMixin)
        return None if legacy else cls.from_config(part.config)
    from transformers import PreTrainedModel

    if not issubclass(cls, PreTrainedModel) or (
        cls.can_generate() and (part.path / "generation_config.json").is_file()
    ):
        return None  # it has a second configuration, and rules for it
    config = cls.config_class.from_pretrained(part.path, local_files_only=True)
    for inner in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if inner is not None:
            inner.dtype = dtype
    module = cls(config)
    kept = set(module._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(module._keep_in_fp32_modules or ())
    return None if kept and dtype != torch.float32 else module  # patterns, in a syntax of its own


def _sources(
    stored: Mapping[str, tuple[Path, StoredTensor]], expected: Mapping[str, torch.Tensor], prefix: str
) -> dict[str, str]:
    """The module's name of each stored tensor -> its stored name; one with no place, or whose place is taken, keeps
    its own. A model without a head may be stored as the part of one that has it, and the other way round."""
    sources: dict[str, str] = {}
    for name in stored:
        inner = name.removeprefix(f"{prefix}.") if prefix else name
        outer = f"{prefix}.{name}" if prefix else name
        place = next((known for known in (name, inner, outer) if known in expected and known not in sources), name)
        if place in expected or not (name.startswith(IGNORED) or name.endswith(COUNTED)):
            sources[place] = name
    return sources


def _dtype(module: Any, name: str, built: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """What the library would load the tensor in: transformers' parameters are built in it already."""
    import diffusers

    if not (isinstance(module, diffusers.ModelMixin) and built.is_floating_point):
        return built
    kept = module._keep_in_fp32_modules or ()
    kept = [kept] if isinstance(kept, str) else kept
    return torch.float32 if set(kept) & set(name.split(".")) else dtype
