"""y = W x + b with 8-bit W and x: W with a scale per row, x with one per token, found anew in each call.

On NVIDIA GPUs the products are torch's own kernels, or comfy-kitchen's for int8 where it is installed: one kernel that
also scales. On the CPU the same 8-bit numbers are multiplied as float32, which is exact for int8 up to 1040 columns.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

from candela.checkpoints.packed import QuantizedLinear, Scaled, hadamard, rounded

INT8_ROWS = 17  # fewer rows of x are an error in torch._int_mm on CUDA before torch 2.13
INT8_SIDES, FP8_SIDES = 8, 16  # what the other sides must be multiples of (cuBLASLt)


class EightBitLinear(QuantizedLinear):
    """A linear layer over `Scaled` values that rounds what comes in to the same kind of numbers."""

    values: torch.Tensor
    scale: torch.Tensor

    def __init__(self, packed: Scaled, bias: torch.nn.Parameter | None, dtype: torch.dtype, fused: bool = False):
        """`fused`: on CUDA, int8 goes through comfy-kitchen."""
        super().__init__(packed, bias, dtype)
        self.rotation = packed.rotation
        self.fused = fused and packed.values.dtype == torch.int8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.fused and x.is_cuda:
            y = int8_linear(rows, self.values, self.scale, self.bias, self.rotation)
        else:
            if self.rotation:
                rows = turned(rows, self.rotation)
            y = product(rows, self.values, self.scale, self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)


def product(
    x: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x [tokens, in], 8-bit `values` [out, in] with `scale` [out, 1] or [1, 1] -> [tokens, out] in x's precision."""
    kind = torch.int8 if values.dtype == torch.int8 else torch.float8_e4m3fn
    rows, row_scale = rounded(x, kind)
    if not x.is_cuda:
        y = rows.float() @ values.float().T
    elif kind == torch.int8:
        y = int8_product(rows, values).float()
    else:
        y = fp8_product(rows, values).float()
    y = y * row_scale * scale.T
    return (y if bias is None else y + bias).to(x.dtype)


def int8_product(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """int8 [tokens, in] x int8 [out, in] -> int32 [tokens, out]."""
    a, b = _fitting(x, values, INT8_SIDES, INT8_ROWS)
    return torch._int_mm(a, b.T)[: x.shape[0], : values.shape[0]]


def fp8_product(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """8-bit floats [tokens, in] x [out, in] -> bfloat16 [tokens, out].

    The rows' scales are left to the caller: torch has a kernel that takes them for some cards only, and the one with
    a scale for the whole matrix, here 1, for all. Compiled, the scaling is part of the next kernel."""
    a, b = _fitting(x, values, FP8_SIDES)
    one = torch.ones((), device=x.device)
    y = torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return y[: x.shape[0], : values.shape[0]]


def _fitting(x: torch.Tensor, values: torch.Tensor, sides: int, rows: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with zeros, which add nothing, up to multiples of `sides` and at least `rows` of x. The sizes of published
    models need none."""
    columns = -x.shape[1] % sides
    return _padded(x, max(rows - x.shape[0], 0), columns), _padded(values, -values.shape[0] % sides, columns)


def _padded(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    if not rows and not columns:
        return matrix
    return functional.pad(matrix.view(torch.int8), (0, columns, 0, rows)).view(matrix.dtype)


def turned(x: torch.Tensor, rotation: int) -> torch.Tensor:
    """x [tokens, in] as a weight expects it whose columns were turned in groups of `rotation` (ConvRot)."""
    matrix = hadamard(rotation, x.device).to(x.dtype)
    return (x.unflatten(1, (-1, rotation)) @ matrix).flatten(1)


@functools.cache
def has_kitchen() -> bool:
    """Whether comfy-kitchen is here with its CUDA kernels: ComfyUI brings it, and so does candela[fast]."""
    try:
        import comfy_kitchen
    except ImportError:
        return False
    return hasattr(comfy_kitchen, "int8_linear") and comfy_kitchen.registry.is_available("cuda")


@torch.library.custom_op("candela::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, rotation: int
) -> torch.Tensor:
    """comfy-kitchen's, as one node for torch.compile, which cannot look into it. x [tokens, in] -> [tokens, out]."""
    import comfy_kitchen

    return comfy_kitchen.int8_linear(
        x, values, scale.flatten(), bias, out_dtype=x.dtype, convrot=bool(rotation), convrot_groupsize=rotation or 256
    )


@int8_linear.register_fake
def _(x, values, scale, bias, rotation):
    return x.new_empty(x.shape[0], values.shape[0])
