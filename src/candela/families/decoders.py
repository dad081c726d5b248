"""Where latents become pixels in a pipeline that runs whole: finding the decoder, and leaving the run before it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

DECODERS = ("vae", "movq", "vqgan", "vqvae")
# With any other argument the decoder is given more than a latent (Amused: token ids and a shape).
DECODER_OPTIONS = {"return_dict", "generator", "force_not_quantize"}


def decoder_of(components: Mapping[str, Any]) -> Any | None:
    """The component that makes pixels from latents, if the pipeline has one."""
    return next((components[name] for name in DECODERS if hasattr(components.get(name), "decode")), None)


def spatial_factor(decoder: Any | None) -> int:
    """Pixels a side per latent; 1 without a decoder."""
    if decoder is None:
        return 1
    config = decoder.config
    told = config.get("spatial_compression_ratio") or config.get("scale_factor_spatial")
    if told := told or vars(decoder).get("spatial_compression_ratio"):
        return told
    if "up_down_scale_factor" in config:  # PaellaVQModel
        return config["up_down_scale_factor"] ** config["levels"]
    return 2 ** (len(config.get("block_out_channels", (1, 1, 1, 1))) - 1)


def latent_channels(decoder: Any | None) -> int:
    """Of the decoder; 3 without one, where pictures travel as pixels."""
    config = decoder.config if decoder is not None else {}
    return config.get("latent_channels") or config.get("z_dim") or 3


def decode(decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Raw latents float [1, C, h, w] -> pixels float32 [1, 3, H, W] in the decoder's own range."""
    if any(isinstance(module, torch.nn.Conv3d) for module in decoder.modules()):
        latents = latents.unsqueeze(2)  # a video's VAE: one frame
    options = (
        {"force_not_quantize": True}
        if "force_not_quantize" in inspect.signature(inspect.unwrap(decoder.decode)).parameters
        else {}
    )
    return picture(decoder.decode(latents, return_dict=False, **options)[0])


def picture(values: torch.Tensor) -> torch.Tensor:
    """[1, C, 1, h, w] of a video's VAE -> float32 [1, C, h, w]."""
    return (values.squeeze(2) if values.ndim == 5 else values).detach().float()


class Reached(BaseException):  # not an error: no `except Exception` of a pipeline may take it for one
    """The pipeline has called its decoder: the latents are finished."""


@contextmanager
def left_at(decoder: Any | None) -> Iterator[list[torch.Tensor]]:
    """While this lasts, a call of `decoder.decode` that is given one picture's latents puts them into the list and
    ends the pipeline's run. Any other call goes through."""
    taken: list[torch.Tensor] = []
    if decoder is None:
        yield taken
        return
    real = decoder.decode

    def instead(latents: Any, *more: Any, **options: Any) -> Any:
        one = isinstance(latents, torch.Tensor) and latents.is_floating_point() and len(latents) == 1
        still = one and (latents.ndim == 4 or (latents.ndim == 5 and latents.shape[2] == 1))
        if not still or more or options.keys() - DECODER_OPTIONS:
            return real(latents, *more, **options)
        taken.append(latents)
        raise Reached

    decoder.decode = instead
    try:
        yield taken
    finally:
        del decoder.decode
