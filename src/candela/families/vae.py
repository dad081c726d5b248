"""AutoencoderKL: its factor; and its decoder faster, by the layout that convolutions like and no convolution over
repeated pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from candela.checkpoints import Part
from candela.errors import MismatchedModel
from candela.families.layers import library_forward, replace_forward

BLOCKS = ("block_out_channels", "down_block_types", "up_block_types")
MAX_BLOCKS = 7  # 64 pixels a side


def factor_of(vae: Part) -> int:
    """Pixels a side of a latent: every block but the last doubles a side (AutoencoderKL of diffusers).

    Raises:
        MismatchedModel: the numbers of blocks contradict each other, or are beyond what any VAE has.
    """
    lists = {key: vae.config.get(key, ("",)) for key in BLOCKS}  # one block is the class's own default
    numbers = {key: len(value) if isinstance(value, (list, tuple)) else 0 for key, value in lists.items()}
    blocks = numbers[BLOCKS[0]]
    if set(numbers.values()) != {blocks} or not 1 <= blocks <= MAX_BLOCKS:
        found = ", ".join(f"{number} {key}" for key, number in numbers.items())
        raise MismatchedModel(
            f"{vae.path}: the VAE's configuration has {found}; it needs as many of each, 1 to {MAX_BLOCKS}. "
            "Download the VAE again"
        )
    return 2 ** (blocks - 1)


def quicken(vae: Any) -> None:
    """Puts the weights into channels_last, which convolution kernels read without reordering; activations work in
    place; in float32 upsampling is also done in fewer products."""
    from diffusers.models.upsampling import Upsample2D

    vae.to(memory_format=torch.channels_last)
    for activation in vae.modules():
        if isinstance(activation, torch.nn.SiLU):  # each gets what a norm has just made
            activation.inplace = True
    if vae.dtype == torch.float32:  # below, sums of weights would be rounded: other pictures
        replace_forward((up for up in vae.modules() if isinstance(up, Upsample2D) and _plain(up)), upsample)


def _plain(up: Any) -> bool:
    conv = up.conv if up.name == "conv" else None
    simple = up.norm is None and up.interpolate and not up.use_conv_transpose
    return simple and conv is not None and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def upsample(up: Any, x: torch.Tensor, output_size: Any = None, *more: Any, **named: Any) -> torch.Tensor:
    """Upsample2D.forward: [B, C, h, w] -> [B, out, 2h, 2w], each pixel repeated 2 x 2 times, then a 3 x 3 convolution.

    Of the nine pixels under the kernel some are always the same, so each of the four kinds of output pixel is a 2 x 2
    convolution of the small picture with sums of weights: 16 products instead of 36
    (sub-pixel convolution, https://arxiv.org/abs/1609.05158)."""
    if output_size is not None or more or named:
        return library_forward(up, x, output_size, *more, **named)
    weight, bias = up.conv.weight, up.conv.bias
    height, width = x.shape[2:]
    around = functional.pad(x, (1, 1, 1, 1))
    out = x.new_empty((len(x), len(weight), 2 * height, 2 * width)).contiguous(memory_format=torch.channels_last)
    for row in (0, 1):
        for column in (0, 1):
            own = _summed(_summed(weight, 2, row), 3, column).contiguous(memory_format=torch.channels_last)
            window = around[:, :, row : row + height + 1, column : column + width + 1]
            out[:, :, row::2, column::2] = functional.conv2d(window, own, bias)
    return out


def _summed(weight: torch.Tensor, axis: int, odd: int) -> torch.Tensor:
    """Three weights along `axis` -> the two that an even (odd) output pixel has for its two source pixels."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([first + middle, last] if odd else [first, middle + last], dim=axis)
