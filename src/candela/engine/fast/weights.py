"""A transformer's weights in 8 bits: rounded layer by layer, or read as they were kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, cast

import torch

from candela.checkpoints import Checkpoint, Components, Part, load_components
from candela.checkpoints.contents import read_contents
from candela.checkpoints.loading import load_component
from candela.checkpoints.packed import QuantizedLinear, Scaled
from candela.engine.fast.arithmetic import EightBitLinear, has_kitchen
from candela.engine.fast.keeping import keep, kept_file
from candela.engine.fast.modes import KINDS
from candela.errors import CheckpointError

# What is rounded: attention's projections and the feed-forwards, 98 % of Z-Image's weights. The rest decides much with
# little: modulation, embedders of picture, text and time, the last layer, norms.
ROUNDED = re.compile(r"(^|\.)(attn\d?|attention|feed_forward)\.")
FORMATS = {torch.int8: "int8_tensorwise", torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}


def load_fast(
    checkpoint: Checkpoint, kind: str, *, device: torch.device, dtype: torch.dtype, target: torch.device
) -> Components:
    """As `load_components`, with the transformer in 8 bits of `kind`. It lies on `device`, and is going to compute on
    `target`.

    Raises:
        CheckpointError: as `load_components`.
    """
    part = checkpoint.parts["transformer"]
    others = {name: other for name, other in checkpoint.parts.items() if name != "transformer"}
    transformer = _transformer(part, kind, device, dtype, target).to(device)
    loaded = load_components(dataclasses.replace(checkpoint, parts=others), device=device, dtype=dtype)
    components = {**loaded.by_name, "transformer": transformer}
    return Components({name: components[name] for name in checkpoint.parts})


def _transformer(
    part: Part, kind: str, device: torch.device, dtype: torch.dtype, target: torch.device
) -> torch.nn.Module:
    path = kept_file(part, kind, dtype)
    transformer = _kept(path, part, kind, device, dtype, target)
    if transformer is None:
        # In main memory, which has room for all of it in full.
        transformer = load_component(part, "transformer", device=torch.device("cpu"), dtype=dtype)
        if round_weights(transformer, kind, dtype, target):
            keep(path, stored_tensors(transformer), {"config": json.dumps({"transformer": part.config})})
            # From the file at once: where numbers lie in memory decides the last bit of some products on CPUs.
            transformer = _kept(path, part, kind, device, dtype, target) or transformer
    return transformer


def _kept(
    path: Path, part: Part, kind: str, device: torch.device, dtype: torch.dtype, target: torch.device
) -> torch.nn.Module | None:
    """None where nothing is kept, or it is damaged, or tidied away just now."""
    with contextlib.suppress(CheckpointError, OSError):
        found = read_contents(path).get("transformer") if path.is_file() else None
        if found is not None:
            kept = dataclasses.replace(part, path=path, config=found.config, files=(path,), found=found)
            transformer = load_component(kept, "transformer", device=device, dtype=dtype)
            with contextlib.suppress(OSError):  # a folder that may only be read
                os.utime(path)
            round_weights(transformer, kind, dtype, target)
            return transformer
    return None


def round_weights(module: torch.nn.Module, kind: str, dtype: torch.dtype, target: torch.device) -> int:
    """Puts an `EightBitLinear` in the place of each linear layer that is `ROUNDED`, and an ordinary one in the place
    of other quantised ones; -> how many were rounded here. One that is of this kind already keeps its numbers."""
    fused = target.type == "cuda" and kind == "int8" and has_kitchen()
    number = 0
    for name, layer in list(module.named_modules()):
        if type(layer) not in (torch.nn.Linear, QuantizedLinear):
            continue
        linear = cast("torch.nn.Linear | QuantizedLinear", layer)
        replacement: torch.nn.Module = linear
        if ROUNDED.search(name):
            packed = linear.packed if isinstance(linear, QuantizedLinear) else None
            if not (isinstance(packed, Scaled) and _is_kind(packed, kind)):
                # On the target, which is quick; only one layer is there in full.
                moved = Scaled.of(linear.weight.detach().to(target), KINDS[kind])
                packed = moved.replaced(moved.shape, {n: t.to("cpu") for n, t in moved.tensors().items()})
                number += 1
            replacement = EightBitLinear(packed, linear.bias, dtype, fused)
        elif isinstance(linear, QuantizedLinear):
            replacement = _dense(linear)
        if replacement is not linear:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, replacement)
    return number


def _is_kind(packed: Scaled, kind: str) -> bool:
    """Both 8-bit floats can be multiplied with e4m3; only the integers are turned."""
    return packed.values.dtype == torch.int8 if kind == "int8" else packed.values.dtype.is_floating_point


def _dense(linear: QuantizedLinear) -> torch.nn.Linear:
    dense = torch.nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    dense.weight = torch.nn.Parameter(linear.weight, requires_grad=False)
    dense.bias = cast(Any, linear.bias)
    return dense


def stored_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By the class's own names, 8-bit weights as ComfyUI's files have them (`checkpoints/tensors.py` reads it), the
    rest in bfloat16 where that loses nothing."""
    tensors = {name: _shortened(parameter.detach()) for name, parameter in module.named_parameters()}
    for name, layer in module.named_modules():
        if isinstance(layer, EightBitLinear):
            described: dict[str, Any] = {"format": FORMATS[layer.values.dtype]}
            if layer.rotation:
                described |= {"convrot": True, "convrot_groupsize": layer.rotation}
            tensors[f"{name}.weight"] = layer.values
            tensors[f"{name}.weight_scale"] = layer.scale
            tensors[f"{name}.comfy_quant"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    return tensors


def _shortened(tensor: torch.Tensor) -> torch.Tensor:
    short = tensor.bfloat16()
    return short if tensor.dtype == torch.float32 and torch.equal(short.float(), tensor) else tensor
