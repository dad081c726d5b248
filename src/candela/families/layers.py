"""Arithmetic that the transformers here share: diffusers' formulas in fewer passes over memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (https://arxiv.org/abs/1910.07467).

    x [..., dim]; `weight` broadcasts against it. The result is a new tensor, safe to change in place.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu":  # torch has no fused kernel there, and squares into a copy
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return (x * square.div_(x.shape[-1]).add_(eps).rsqrt_()).mul_(weight)
    if weight.numel() == x.shape[-1]:
        return functional.rms_norm(x, (x.shape[-1],), weight.reshape(-1), eps)
    return functional.rms_norm(x, (x.shape[-1],), None, eps).mul_(weight)


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: each pair of neighbours in x [B, S, heads, D], seen as a complex number, times
    `rotary` complex64 [B or 1, S, D / 2]. Changes x in place where it is float32."""
    if torch.compiler.is_compiling():  # which fuses this into one kernel, and knows no complex numbers
        cosine, sine = torch.view_as_real(rotary.unsqueeze(2)).unbind(-1)
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = (first * cosine - second * sine, first * sine + second * cosine)
        return torch.stack(turned, dim=-1).flatten(3).to(x.dtype)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(rotary.unsqueeze(2))).flatten(3).to(x.dtype)


def gated(x: torch.Tensor, up: Any, gate: Any, down: Any) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)), x [..., dim] (SwiGLU, https://arxiv.org/abs/2002.05202)."""
    return down(functional.silu(gate(x), inplace=True).mul_(up(x)))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    backend: Any = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention over [B, S, heads, D] -> [B, S, heads D]. `key` and `value` may have fewer heads, each for several of
    the query's; `mask` bool [B, S] says which tokens exist. `backend` is one that was chosen with diffusers'
    `set_attention_backend`, None for torch's own."""
    visible = None if mask is None else mask.unsqueeze(1).unsqueeze(1)
    grouped = key.shape[2] != query.shape[2]
    if grouped and (mask is not None or query.device.type != "cpu"):
        # Of CUDA's fused kernels only flash takes fewer heads, and takes no mask, no float32 and no card before Ampere.
        # With all heads the memory-efficient one takes each; else torch makes the whole matrix of scores
        # (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
        key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], dim=2) for x in (key, value))
        grouped = False
    if backend is not None:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        out = dispatch_attention_fn(
            query, key, value, attn_mask=visible, scale=scale, enable_gqa=grouped, backend=backend
        )
        return out.flatten(2)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)


def modulated_block(
    x: torch.Tensor,
    norms: Sequence[Any],
    modulation: torch.Tensor | None,
    attention: Callable[[torch.Tensor], torch.Tensor],
    feed_forward: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The block that Z-Image and Lumina-Image 2.0 are made of: attention, then feed forward, each with an RMS norm
    before and after it. x [B, S, dim]; `modulation` [B or 1, 4 dim] has the scales and gates of both.

    A scale goes into the weight of the norm before it, and a gate into the one after: one pass over x less for each."""
    weights: list[torch.Tensor] | tuple[torch.Tensor, ...] = [norm.weight for norm in norms]
    if modulation is not None:
        factors = modulation.view(-1, 1, 2, 2, x.shape[-1])  # scale and gate of each half
        factors = torch.stack([factors[..., 0, :] + 1, factors[..., 1, :].tanh()], dim=3)
        weights = (factors.flatten(2, 3) * torch.stack(weights)).unbind(2)
    first, second, third, fourth = zip(weights, (norm.eps for norm in norms))
    x = rms_norm(attention(rms_norm(x, *first)), *second).add_(x)
    return rms_norm(feed_forward(rms_norm(x, *third)), *fourth).add_(x)


def to_patches(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] -> [B, h w / 4, 4 C], values of a patch of 2 x 2 ordered row, column, channel."""
    number, channels, height, width = latents.shape
    squares = latents.view(number, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 3, 5, 1).reshape(number, -1, 4 * channels)


def from_patches(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The reverse, to latents [B, C, height, width]."""
    squares = patches.unflatten(2, (2, 2, -1)).unflatten(1, (height // 2, width // 2))
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height, width)


def grid(first: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Positions of the patches of height x width latents: int64 [h w / 4, 3] of (first, row, column)."""
    rows = torch.arange(height // 2, device=device)
    columns = torch.arange(width // 2, device=device)
    return torch.cartesian_prod(torch.full((1,), first, device=device), rows, columns)


def mask_beyond(lengths: list[int], before: int, after: int, device: torch.device) -> torch.Tensor | None:
    """Which tokens exist, bool [B, before + longest + after], where row i has `lengths[i]` in the middle;
    None where the lengths agree: an attention mask costs, even one that hides nothing."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    middle = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return functional.pad(functional.pad(middle, (before, 0), value=True), (0, after), value=True)


def replace_forward(modules: Iterable[torch.nn.Module], forward: Callable[..., Any]) -> None:
    """Each module computes by `forward(module, ...)`, of the same signature, from now on. Hooks, LoRAs and compilation
    see the same modules as before; `library_forward` is what they computed by.

    By their class: a method of its own, kept by a module, would keep the module, and its weights would stay after the
    last who knew it until Python looks for such circles."""
    for module in modules:
        cls: Any = type(module)  # mypy takes no types for hashable
        module.__class__ = _computing_by(forward, cls)


@functools.cache
def _computing_by(forward: Callable[..., Any], cls: type) -> type:
    own = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), own)


def library_forward(module: torch.nn.Module, *arguments: Any, **named: Any) -> Any:
    """What the module computed before `replace_forward`."""
    return super(type(module), module).forward(*arguments, **named)  # type: ignore[misc]
