"""A component's own class, filled with the weights of a file: every one of them, and nothing else."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from candela.checkpoints.architectures import Piece
from candela.checkpoints.building import without_memory
from candela.checkpoints.contents import Found
from candela.checkpoints.packed import BlockScaled, Packed, QuantizedEmbedding, QuantizedLinear
from candela.checkpoints.sanity import check_config
from candela.checkpoints.tensors import stored_weights
from candela.errors import MismatchedModel

LLAMA_NORM = re.compile(r"(blk\.\d+\..*|output_)norm\.weight$")  # only llama.cpp adds the offset
PADDING = 1 << 20  # bytes that a matrix of blocks may be larger than its values


@dataclass(frozen=True)
class Fitted:
    """A stored weight, or the rows of it that belong to `piece`, in the shape [...] that the parameter has; `value` is
    None where they do not fit. `stored` is its name in the file, `shape` what it has there."""

    stored: str
    shape: tuple[int, ...]
    piece: Piece
    value: torch.Tensor | Packed | None


def build(found: Found, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Builds the component that `found` describes and fills it. Quantised matrices of linear layers and embeddings
    stay as they are stored; everything else is in `dtype`. On the meta device no weight is read.

    Raises:
        MismatchedModel: weights that the class does not have, or has in another shape, or that the file lacks.
        DamagedFile: tensors that cannot be read.
    """
    module, hollow = empty(found), device.type == "meta"
    shapes = shapes_of(module)
    unexpected: list[str] = []
    mismatched: list[str] = []
    filled: set[str] = set()
    places = pieces_of(found, shapes)
    for name, stored in found.weights.items():
        known = places[name]
        owned = [piece for piece in found.architecture.pieces(name) if not found.architecture.ignores(piece.name)]
        unexpected += [name] if len(known) < len(owned) else []
        room = 8 * sum(math.prod(shapes[piece.name]) for piece in known)
        if known and stored.bytes > room + PADDING:  # not read before it is known to fit
            mismatched.append(f"{name} {list(stored.shape)} instead of {list(shapes[known[0].name])}")
            filled |= {piece.name for piece in places.pop(name)}
    for fitted in fitted_weights(found, places, shapes, hollow=hollow):
        target = fitted.piece.name
        if fitted.value is None:
            mismatched.append(f"{target} {list(fitted.shape)} instead of {list(shapes[target])}")
        else:
            _place(module, target, fitted.value, device, dtype)
        filled.add(target)
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
    return module if hollow else module.to(device)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of every parameter by name; of packed layers, of the matrix that they stand for."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear):
            shapes[f"{name}.weight"] = (layer.out_features, layer.in_features)
    return shapes


def pieces_of(found: Found, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Piece]]:
    """Where each weight of the file goes: the parameters among `shapes` by its stored name."""
    architecture = found.architecture
    return {
        stored: [p for p in architecture.pieces(stored) if p.name in shapes and not architecture.ignores(p.name)]
        for stored in found.weights
    }


def fitted_weights(
    found: Found,
    places: Mapping[str, list[Piece]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    hollow: bool = False,
) -> Iterator[Fitted]:
    """The weights of the file that have `places`, read one after the other; if `hollow` not read, and on the meta
    device.

    Raises:
        MismatchedModel, DamagedFile: as `stored_weights`.
    """
    for stored, value in stored_weights(found, lambda name: bool(places.get(name)), hollow=hollow):
        if found.header.format == "gguf" and found.architecture.norm_offset and LLAMA_NORM.match(stored):
            value = dense(value, torch.float32) - found.architecture.norm_offset
        for piece in places[stored]:
            yield Fitted(stored, tuple(value.shape), piece, _fitted(value, piece, places[stored], shapes))


def empty(found: Found) -> Any:
    """The component's class, built from its configuration, with parameters that take no memory yet."""
    check_config(found.header.path, found.config, len(found.weights))
    cls = getattr(importlib.import_module(found.architecture.library), found.architecture.class_name)
    with without_memory():
        if found.architecture.library == "diffusers":
            return cls.from_config(found.config)
        return cls(cls.config_class.from_dict(found.config))


def dense(value: torch.Tensor | Packed, dtype: torch.dtype) -> torch.Tensor:
    """`value` as an ordinary tensor; one on the meta device stays there."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype)
    hollow = all(tensor.is_meta for tensor in value.tensors().values())  # tables and numpy have no meta device
    return torch.empty(value.shape, dtype=dtype, device="meta") if hollow else value.dense(dtype)


def _fitted(
    value: torch.Tensor | Packed, piece: Piece, siblings: list[Piece], shapes: Mapping[str, tuple[int, ...]]
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
        return dense(value, torch.float32).reshape(target)
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
    tensor = dense(value, dtype).to(device)
    owner.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))


def _packed_kind(owner: torch.nn.Module) -> type[QuantizedLinear] | None:
    """The packed layer that computes what `owner` does; None for what has none."""
    if type(owner) is torch.nn.Linear:
        return QuantizedLinear
    scaled = hasattr(owner, "scalar_embed_scale")  # Gemma's
    if type(owner) is torch.nn.Embedding or (isinstance(owner, torch.nn.Embedding) and scaled):
        return QuantizedEmbedding
    return None
