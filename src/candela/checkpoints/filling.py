"""A component's own class, filled with the weights of a file: every one of them, and nothing else."""

from __future__ import annotations

import importlib
import math
import re
from typing import Any

import torch

from candela.checkpoints.architectures import Piece
from candela.checkpoints.contents import Found
from candela.checkpoints.packed import BlockScaled, Packed, QuantizedEmbedding, QuantizedLinear
from candela.checkpoints.sanity import check_config
from candela.checkpoints.tensors import stored_weights
from candela.errors import MismatchedModel

LLAMA_NORM = re.compile(r"(blk\.\d+\..*|output_)norm\.weight$")  # only llama.cpp adds the offset
PADDING = 1 << 20  # bytes that a matrix of blocks may be larger than its values


def build(found: Found, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Builds the component that `found` describes and fills it. Quantised matrices of linear layers and embeddings
    stay as they are stored; everything else is in `dtype`.

    Raises:
        MismatchedModel: weights that the class does not have, or has in another shape, or that the file lacks.
        DamagedFile: tensors that cannot be read.
    """
    module = empty(found)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    unexpected: list[str] = []
    mismatched: list[str] = []
    filled: set[str] = set()
    places: dict[str, list[Piece]] = {}
    for name, stored in found.weights.items():
        pieces = [piece for piece in found.architecture.pieces(name) if not found.architecture.ignores(piece.name)]
        unexpected += [name for piece in pieces if piece.name not in shapes][:1]
        places[name] = [piece for piece in pieces if piece.name in shapes]
        room = 8 * sum(math.prod(shapes[piece.name]) for piece in places[name])
        if places[name] and stored.bytes > room + PADDING:  # not read before it is known to fit
            mismatched.append(f"{name} {list(stored.shape)} instead of {list(shapes[places[name][0].name])}")
            filled |= {piece.name for piece in places.pop(name)}
    for name, value in stored_weights(found, lambda name: bool(places.get(name))):
        known = places[name]
        if found.header.format == "gguf" and found.architecture.norm_offset and LLAMA_NORM.match(name):
            value = _dense(value, torch.float32) - found.architecture.norm_offset
        for piece in known:
            fitted = _fitted(value, piece, known, shapes)
            if fitted is None:
                mismatched.append(f"{piece.name} {list(value.shape)} instead of {list(shapes[piece.name])}")
            else:
                _place(module, piece.name, fitted, device, dtype)
            filled.add(piece.name)
    missing = sorted(shapes.keys() - filled)
    problems = [
        f"{len(names)} {label} ({', '.join(name[:120] for name in names[:3])}{', ...' if len(names) > 3 else ''})"
        for label, names in [("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)]
        if names
    ]
    if problems:
        raise MismatchedModel(
            f"{found.header.path}: the weights of its {found.title} do not fit {found.architecture.class_name}: "
            f"{'; '.join(problems)}. Is it complete, and of the model that it claims to be?"
        )
    return module.to(device)


def empty(found: Found) -> Any:
    """The component's class, built from its configuration, with parameters that take no memory yet."""
    from accelerate import init_empty_weights

    check_config(found.header.path, found.config, len(found.weights))
    cls = getattr(importlib.import_module(found.architecture.library), found.architecture.class_name)
    with init_empty_weights():
        if found.architecture.library == "diffusers":
            return cls.from_config(found.config)
        return cls(cls.config_class.from_dict(found.config))


def _dense(value: torch.Tensor | Packed, dtype: torch.dtype) -> torch.Tensor:
    return value.dense(dtype) if isinstance(value, Packed) else value.to(dtype)


def _fitted(
    value: torch.Tensor | Packed, piece: Piece, siblings: list[Piece], shapes: dict[str, tuple[int, ...]]
) -> torch.Tensor | Packed | None:
    """The rows of `value` that are `piece`'s, in the shape that its parameter has; None if they do not fit."""
    target = shapes[piece.name]
    if piece.part is not None:
        sizes = [shapes[sibling.name][0] for sibling in siblings]
        if value.shape[0] < sum(sizes) or (value.shape[0] > sum(sizes) and not isinstance(value, BlockScaled)):
            return None
        begin = sum(sizes[: piece.part])
        own = slice(begin, begin + target[0])
        value = value.rows(own) if isinstance(value, Packed) else value[own]
    if isinstance(value, BlockScaled):  # padded to whole blocks
        padded = [-(-side // 32) * 32 for side in target]
        if len(target) == 2 and all(t <= v <= p for t, v, p in zip(target, value.shape, padded)):
            return value.replaced((target[0], target[1]), value.rows(slice(0, target[0])).tensors())
    if tuple(value.shape) == target:
        return value
    # The same but for sides of 1: pad tokens [dim] and [1, dim], 1x1 convolutions that are matrices here.
    if [n for n in value.shape if n != 1] == [n for n in target if n != 1]:
        return _dense(value, torch.float32).reshape(target)
    return None


def _place(
    module: torch.nn.Module, name: str, value: torch.Tensor | Packed, device: torch.device, dtype: torch.dtype
) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    kind = _packed_kind(owner) if isinstance(value, Packed) and leaf == "weight" else None
    if kind and isinstance(value, Packed):
        packed = value.replaced(value.shape, {k: t.to(device) for k, t in value.tensors().items()})
        layer = kind(packed, getattr(owner, "bias", None), dtype)
        if isinstance(layer, QuantizedEmbedding):
            layer.scale_by = float(getattr(owner, "scalar_embed_scale", 1.0))
        parent, _, last = path.rpartition(".")
        setattr(module.get_submodule(parent), last, layer)
        return
    dense = _dense(value, dtype).to(device)
    owner.register_parameter(leaf, torch.nn.Parameter(dense, requires_grad=False))


def _packed_kind(owner: torch.nn.Module) -> type[QuantizedLinear] | None:
    """The packed layer that computes what `owner` does; None for what has none."""
    if type(owner) is torch.nn.Linear:
        return QuantizedLinear
    scaled = hasattr(owner, "scalar_embed_scale")  # Gemma's
    if type(owner) is torch.nn.Embedding or (isinstance(owner, torch.nn.Embedding) and scaled):
        return QuantizedEmbedding
    return None
