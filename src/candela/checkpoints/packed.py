"""Quantised matrices: kept as they are stored, and made dense when a layer needs them."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Packed(ABC):
    """A matrix [rows, columns] as stored. Every field that is a tensor moves with the layer that holds it."""

    shape: tuple[int, int]

    fields: ClassVar[tuple[str, ...]]  # names of the tensors, each with as many rows as the matrix, or one value

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """-> [rows, columns], computed in float32."""

    @abstractmethod
    def replaced(self, shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> Packed:
        """The same scheme with other tensors."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in self.fields}

    def rows(self, index: slice | torch.Tensor) -> Packed:
        """Some of the rows, still packed."""
        chosen = {name: t[index] if t.numel() > 1 else t for name, t in self.tensors().items()}
        return self.replaced((chosen[self.fields[0]].shape[0], self.shape[1]), chosen)


@dataclass(frozen=True)
class GGUFBlocks(Packed):
    """ggml's block types. `blocks` uint8 [rows, bytes per row]."""

    blocks: torch.Tensor
    kind: str

    fields = ("blocks",)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        import gguf
        from diffusers.quantizers.gguf.utils import dequantize_functions

        kind = gguf.GGMLQuantizationType[self.kind]
        function = dequantize_functions.get(kind)
        if function is None:  # the rarer ones, in numpy
            values = torch.from_numpy(gguf.quants.dequantize(self.blocks.cpu().numpy(), kind)).to(self.blocks.device)
        else:
            block, width = gguf.GGML_QUANT_SIZES[kind]
            values = function(self.blocks.reshape(-1, width), block, width, torch.float32)
        return values.reshape(self.shape).to(dtype)

    def replaced(self, shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> GGUFBlocks:
        return GGUFBlocks(shape, tensors["blocks"], self.kind)


def readable(kind: str) -> bool:
    """Whether the gguf package can make ggml's `kind` dense."""
    import gguf

    return gguf.GGMLQuantizationType[kind] in gguf.quants._type_traits


@dataclass(frozen=True)
class Scaled(Packed):
    """8-bit floats or integers with one scale, or one per row. `values` [rows, columns], `scale` float32 [1] or
    [rows, 1]. `rotation` is the width of the groups of columns that were turned before they were rounded, 0 for none.
    """

    values: torch.Tensor
    scale: torch.Tensor
    rotation: int = 0

    fields = ("values", "scale")

    @classmethod
    def of(cls, matrix: torch.Tensor, kind: torch.dtype) -> Scaled:
        """`matrix` [rows, columns] rounded to `kind`, int8 or float8_e4m3fn, with a scale per row."""
        return cls((matrix.shape[0], matrix.shape[1]), *rounded(matrix, kind))

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        result = self.values.float() * self.scale.float()
        if self.rotation:
            matrix = hadamard(self.rotation, result.device)
            result = (result.unflatten(1, (-1, self.rotation)) @ matrix.T).flatten(1)
        return result.to(dtype)

    def replaced(self, shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> Scaled:
        return Scaled(shape, tensors["values"], tensors["scale"], self.rotation)


@dataclass(frozen=True)
class BlockScaled(Packed):
    """4-bit (nvfp4) or 8-bit (mxfp8) floats with a scale per block of columns.

    `values` uint8 [rows, columns / 2], the first of each pair in the high bits, or float8 [rows, columns];
    `blocks` [rows, columns / block], float8 of either kind; `scale` float32 [1].
    """

    values: torch.Tensor
    blocks: torch.Tensor
    scale: torch.Tensor

    fields = ("values", "blocks", "scale")

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        values = self.values
        if values.dtype == torch.uint8:
            values = torch.stack([values >> 4, values & 15], dim=-1).flatten(1)
            values = e2m1(values.device)[values.int()]
        groups = values.float().unflatten(1, (self.blocks.shape[1], -1))
        result = (groups * (self.blocks.float() * self.scale).unsqueeze(-1)).flatten(1)
        return result[:, : self.shape[1]].to(dtype)

    def replaced(self, shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> BlockScaled:
        return BlockScaled(shape, tensors["values"], tensors["blocks"], tensors["scale"])


@functools.cache
def e2m1(device: torch.device) -> torch.Tensor:
    """The sixteen values of a 4-bit float with two bits of exponent and one of mantissa (OCP Microscaling 1.0)."""
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    return torch.tensor([*values, *(-value for value in values)], device=device)


@functools.cache
def hadamard(size: int, device: torch.device | None = None) -> torch.Tensor:
    """The regular orthogonal Hadamard matrix [size, size], its own inverse; size is a power of 4.

    As ComfyUI's int8 files use it (ConvRot, comfy-kitchen's int8_utils)."""
    if size < 4 or math.log(size, 4) % 1:
        raise ValueError(f"a rotation's groups are 4, 16, 64, 256, ... wide, not {size}")
    block = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    result = block
    while len(result) < size:
        result = torch.kron(result, block)
    return (result / math.sqrt(size)).to(device)


def rounded(matrix: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`matrix` [rows, columns] -> 8-bit values of `kind` (int8 or an 8-bit float), and float32 [rows, 1] that they are
    multiplied by: each row's largest magnitude becomes the kind's."""
    largest = 127.0 if kind == torch.int8 else torch.finfo(kind).max
    scale = matrix.abs().amax(1, keepdim=True).float().clamp_min(SMALLEST) / largest
    values = matrix.float() / scale
    return (values.round() if kind == torch.int8 else values).to(kind), scale


SMALLEST = 1e-12  # a row of zeros has no scale


def untiled(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Block scales in the tiles of 128 x 4 that tensor cores read (cuBLAS, "1D block scaling factors layout")
    -> [rows, columns]."""
    high, wide = -(-rows // 128), -(-columns // 4)
    tiles = scales.reshape(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high * 128, wide * 4)[:rows, :columns]


class QuantizedLinear(torch.nn.Module):
    """A linear layer over a packed weight; `weight` makes it dense anew each time."""

    def __init__(self, packed: Packed, bias: torch.nn.Parameter | None, dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.compute_dtype = dtype
        self._hold(packed)
        self.bias = bias

    def _hold(self, packed: Packed) -> None:
        self._packed = packed.replaced(packed.shape, {name: torch.empty(0) for name in packed.fields})
        for name, tensor in packed.tensors().items():
            self.register_buffer(name, tensor)

    @property
    def packed(self) -> Packed:
        return self._packed.replaced(self._packed.shape, {name: getattr(self, name) for name in self._packed.fields})

    @property
    def weight(self) -> torch.Tensor:
        """[out_features, in_features], in the precision that the model computes in."""
        return self.packed.dense(self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {type(self._packed).__name__}"


class QuantizedEmbedding(QuantizedLinear):
    """An embedding over a packed table; only the rows looked up are made dense. Gemma multiplies them by a number."""

    scale_by = 1.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.packed.rows(ids.flatten()).dense(self.compute_dtype).unflatten(0, ids.shape)
        return rows if self.scale_by == 1.0 else rows * torch.tensor(self.scale_by, dtype=rows.dtype)
