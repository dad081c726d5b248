"""What a LoRA adds to the output of one linear module y = W x + b. The stored W is never touched.

Every delta stands for a matrix D [out, in] that it never builds where its factors do: it gives D x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

Tensors = dict[str, torch.Tensor]


class Delta(torch.nn.Module):
    """x [..., in] -> D x [..., out]. Its tensors are buffers: they follow the module that they are registered in."""

    def keep(self, **tensors: torch.Tensor) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def dense(self) -> torch.Tensor:
        """D itself."""
        raise NotImplementedError


class LowRank(Delta):
    """D = up down (https://arxiv.org/abs/2106.09685)."""

    up: torch.Tensor
    down: torch.Tensor

    def __init__(self, up: torch.Tensor, down: torch.Tensor):
        super().__init__()
        self.keep(up=up, down=down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(x, self.down), self.up)

    def dense(self) -> torch.Tensor:
        return self.up @ self.down


class Kronecker(Delta):
    """D = rows first..first + rows of one (x) two (LoKr; LyCORIS, https://arxiv.org/abs/2309.14859).

    `one` [a, c], `two` [b, d]: (one (x) two) x = two X one^T, with x read as X [c, d]."""

    one: torch.Tensor
    two: torch.Tensor

    def __init__(self, one: torch.Tensor, two: torch.Tensor, first: int, rows: int):
        super().__init__()
        inner = two.shape[0]
        begin, end = first // inner, -(-(first + rows) // inner)
        self.first, self.rows = first - begin * inner, rows
        self.keep(one=one[begin:end].contiguous(), two=two)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x.unflatten(-1, (self.one.shape[1], self.two.shape[1]))
        product = self.one @ functional.linear(square, self.two)
        return product.flatten(-2).narrow(-1, self.first, self.rows)

    def dense(self) -> torch.Tensor:
        return torch.kron(self.one, self.two).narrow(0, self.first, self.rows)


class Hadamard(Delta):
    """D = (w1_a w1_b) * (w2_a w2_b), element by element (LoHa; https://arxiv.org/abs/2108.06098). It has no shorter
    form: D is built in each call and let go."""

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor

    def __init__(self, w1_a: torch.Tensor, w1_b: torch.Tensor, w2_a: torch.Tensor, w2_b: torch.Tensor):
        super().__init__()
        self.keep(w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.dense())

    def dense(self) -> torch.Tensor:
        return (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)


class Whole(Delta):
    """D as it is stored (.diff)."""

    matrix: torch.Tensor

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.keep(matrix=matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.matrix)

    def dense(self) -> torch.Tensor:
        return self.matrix


class Addition(torch.nn.Module):
    """D x + bias: what one LoRA adds, its strength within both."""

    bias: torch.Tensor | None

    def __init__(self, delta: Delta | None, bias: torch.Tensor | None):
        super().__init__()
        self.delta = delta
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor, linear: Any) -> torch.Tensor:
        if self.delta is None:
            assert self.bias is not None
            return self.bias
        return self.delta(x) if self.bias is None else self.delta(x) + self.bias


class Decomposed(torch.nn.Module):
    """DoRA (https://arxiv.org/abs/2402.09353): W becomes W' = m (W + D) / ||W + D||, with the norm of each row, or of
    each column as LyCORIS also does it. Adds strength (W' - W) x, as ComfyUI weighs it. (By rows ComfyUI divides by
    ||W|| alone; the paper, peft and LyCORIS, with which people train, divide by this.)

    `gain` = m / ||W + D||: [out, 1] for rows, [1, in] for columns. What it is beyond 1 is kept: that is small, and
    16 bits hold it well."""

    beyond: torch.Tensor

    def __init__(self, delta: Delta, gain: torch.Tensor, strength: float):
        super().__init__()
        self.delta, self.strength, self.by_row = delta, strength, gain.shape[1] == 1
        self.register_buffer("beyond", gain.flatten() - 1, persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor, linear: Any) -> torch.Tensor:
        bias = getattr(linear, "bias", None)
        if self.by_row:
            product = y if bias is None else y - bias
            change = self.delta(x)
            return self.strength * (self.beyond * (product + change) + change)
        scaled = x * self.beyond
        change = linear.forward(scaled)  # forward: without this hook
        return self.strength * ((change if bias is None else change - bias) + self.delta(x + scaled))


class Additions(torch.nn.Module):
    """Everything that the LoRAs add to one module; its forward hook."""

    place: torch.Tensor

    def __init__(self, parts: Sequence[torch.nn.Module]):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self.register_buffer("place", next(self.buffers()).new_empty(0), persistent=False)

    def hook(self, linear: Any, arguments: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        x = arguments[0]
        if self.place.device != x.device:  # whoever moved the weights alone left these behind
            self.to(x.device)
        total = y
        for part in self.parts:
            total = total + part(x.to(self.place.dtype), y, linear).to(y.dtype)
        return total


def delta_from(tensors: Tensors, scale: float, first: int, rows: int) -> Delta | None:
    """The rows first..first + rows of a LoRA's module, from its tensors by role in float32, times `scale`.
    None where it has a bias only."""

    def part(matrix: torch.Tensor) -> torch.Tensor:
        return matrix[first : first + rows]

    def factor(name: str) -> torch.Tensor:
        if name in tensors:
            return tensors[name]
        return tensors[f"{name}_a"] @ tensors[f"{name}_b"]

    if "down" in tensors:
        return LowRank(part(tensors["up"]) * scale, tensors["down"])
    if "diff" in tensors:
        return Whole(part(tensors["diff"]) * scale)
    if "hada_w1_a" in tensors:
        halves = [part(tensors[f"hada_w{k}_a"]) for k in (1, 2)]
        return Hadamard(halves[0] * scale, tensors["hada_w1_b"], halves[1], tensors["hada_w2_b"])
    if any(role.startswith("lokr") for role in tensors):
        return Kronecker(factor("lokr_w1") * scale, factor("lokr_w2"), first, rows)
    return None
