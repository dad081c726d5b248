"""A model without its weights: the libraries' own classes around tensors that have shapes and no values."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from candela.checkpoints import Checkpoint, Components, Part, part_class
from candela.checkpoints.building import default_dtype, without_memory
from candela.checkpoints.contents import Found
from candela.checkpoints.filling import empty
from candela.checkpoints.loading import load_component
from candela.checkpoints.packed import (
    BlockScaled,
    GGUFBlocks,
    Packed,
    QuantizedEmbedding,
    QuantizedLinear,
    Scaled,
    e2m1,
    hadamard,
)
from candela.families import Family

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

# Where the libraries have to load a component themselves they set the whole process's default precision, so one at a
# time.
BUILDING = threading.RLock()
ROTATION = 256  # the width that int8 files are turned in, and so the most that making them dense may take


@dataclass(frozen=True)
class Skeleton:
    """`components` hold fake tensors, which work below `mode` only."""

    components: Components
    mode: FakeTensorMode


@dataclass(frozen=True)
class Weights:
    """Bytes of one component as it lies in memory: all, what is outside its blocks, and the largest of its blocks; and
    how many of those it has."""

    total: int
    fixed: int
    block: int
    blocks: int

    def scaled(self, total: int) -> Weights:
        """The same proportions of another size."""
        return Weights(total, self.fixed * total // self.total, self.block * total // self.total, self.blocks)


def skeleton(checkpoint: Checkpoint, family: Family, dtype: torch.dtype) -> Skeleton:
    """Every component of `checkpoint` as it would be after loading in `dtype`; no weight is read.

    Raises:
        CheckpointError: as `load_components`, as far as headers and configurations tell.
    """
    for size in (4, 16, 64, 256):  # functions that keep what they compute: not from fake tensors
        hadamard(size, torch.device("cpu"))
    e2m1(torch.device("cpu"))
    parts: dict[str, Any] = {}
    for name, part in checkpoint.parts.items():
        if name in ("tokenizer", "scheduler") or not _has_weights(part, name):
            parts[name] = load_component(part, name, device=torch.device("cpu"), dtype=dtype)
            continue
        with BUILDING:
            parts[name] = without_weights(part, name, dtype)
    components = Components(parts)
    family.prepare(components)
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a while

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in components.modules.values():
            _fake(module)
    return Skeleton(components, mode)


def without_weights(part: Part, name: str, dtype: torch.dtype) -> Any:
    """The component that `load_component` gives, with its parameters on the meta device; what its class computes
    when it is built is there."""
    with default_dtype(dtype):
        module = empty(part.found) if part.found else _empty(part, name)
    upcast = name == "vae" and dtype == torch.float16 and getattr(module.config, "force_upcast", False)
    if part.found:
        _pack(module, part.found, dtype)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float32 if upcast else dtype)
    return module.eval().requires_grad_(False)


def _has_weights(part: Part, name: str) -> bool:
    cls = part_class(part, name)
    return isinstance(cls, type) and issubclass(cls, torch.nn.Module)


def _empty(part: Part, name: str) -> Any:
    cls = part_class(part, name)
    with without_memory():
        if part.library == "diffusers":
            return cls.from_config(part.config)
        return cls(cls.config_class.from_dict(part.config))


def _fake(module: torch.nn.Module) -> None:
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = torch.nn.Parameter(_like(parameter), requires_grad=False)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = _like(buffer)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _pack(module: torch.nn.Module, found: Found, dtype: torch.dtype) -> None:
    """Puts packed layers where the file's weights are quantised, as filling does."""
    for name, stored in found.weights.items():
        scheme = found.scheme(name)
        if scheme in ("plain", "unknown") or len(stored.shape) != 2:
            continue
        for piece in found.architecture.pieces(name):
            path, _, leaf = piece.name.rpartition(".")
            if leaf != "weight" or found.architecture.ignores(piece.name):
                continue
            pack(module, path, found.header.format if found.header.format == "gguf" else scheme, dtype, stored.dtype)


def pack(module: torch.nn.Module, path: str, scheme: str, dtype: torch.dtype, kind: str = "") -> None:
    """Exchanges the linear layer or embedding at `path` for one over a matrix stored by `scheme` (gguf, of ggml's
    `kind`; fp8, int8, nvfp4)."""
    layer = module.get_submodule(path)
    if not isinstance(layer, (torch.nn.Linear, torch.nn.Embedding)):
        return
    rows, columns = layer.weight.shape
    with torch.device("meta"):
        packed = _packed(scheme, kind, rows, columns)
    if packed is None:
        return
    cls = QuantizedLinear if isinstance(layer, torch.nn.Linear) else QuantizedEmbedding
    quantised = cls(packed, getattr(layer, "bias", None), dtype)
    if isinstance(quantised, QuantizedEmbedding):
        quantised.scale_by = float(getattr(layer, "scalar_embed_scale", 1.0))
    parent, _, last = path.rpartition(".")
    setattr(module.get_submodule(parent), last, quantised)


def quantise_blocks(bare: Skeleton, precision: str, dtype: torch.dtype) -> None:
    """Stores the linear layers of all blocks in `precision` (int8, nvfp4), as published files of it do."""
    with torch.no_grad():
        for name in ("transformer", "text_encoder"):
            module = bare.components.by_name[name]
            blocks = {id(inner) for block in blocks_of(module) for inner in block.modules()}
            paths = [path for path, inner in module.named_modules() if id(inner) in blocks]
            for path in paths:
                if isinstance(module.get_submodule(path), torch.nn.Linear):
                    pack(module, path, precision, dtype)
            with bare.mode:
                _fake(module)


def _packed(scheme: str, kind: str, rows: int, columns: int) -> Packed | None:
    """As the file's reader makes them (`checkpoints/tensors.py`), of fake tensors."""
    shape = (rows, columns)
    if scheme == "gguf":
        import gguf

        block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        return GGUFBlocks(shape, torch.empty(rows, columns // block * width, dtype=torch.uint8), kind)
    if scheme == "fp8":
        return Scaled(shape, torch.empty(shape, dtype=torch.float8_e4m3fn), torch.empty(1, 1))
    if scheme == "int8":
        rotation = ROTATION if columns % ROTATION == 0 else 0
        return Scaled(shape, torch.empty(shape, dtype=torch.int8), torch.empty(rows, 1), rotation)
    if scheme == "nvfp4":
        values = torch.empty(rows, columns // 2, dtype=torch.uint8)
        blocks = torch.empty(rows, columns // 16, dtype=torch.float8_e4m3fn)
        return BlockScaled(shape, values, blocks, torch.empty(1))
    return None


def weights(module: torch.nn.Module) -> Weights:
    """Of a component, real or a skeleton."""
    blocks = [size_of(block) for block in blocks_of(module)]
    total = size_of(module)
    return Weights(total, total - sum(blocks), max(blocks, default=0), len(blocks))


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """What a transformer or text encoder repeats: the members of its own lists, in their order."""
    return [block for child in module.children() if isinstance(child, torch.nn.ModuleList) for block in child]


def size_of(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def all_weights(components: Components) -> Mapping[str, Weights]:
    return {name: weights(module) for name, module in components.modules.items()}
