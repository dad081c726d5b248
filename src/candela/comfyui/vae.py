"""The model's VAE as ComfyUI's nodes use one: VAE Decode, VAE Encode, their tiled forms, and inpainting."""

from __future__ import annotations

import comfy.model_management as management
import torch

from candela.comfyui.latents import flat
from candela.comfyui.models import LoadedModel, unloading_when_full


class EngineVAE:
    """Pictures are float [B, H, W, 3] in 0..1; latents raw VAE space [B, C, H / factor, W / factor]."""

    output_channels = 3

    def __init__(self, model: LoadedModel):
        self.model = model
        self.latent_channels = model.engine.latent_channels
        self.downscale_ratio = self.upscale_ratio = model.engine.family.latent_factor

    def decode(self, samples: torch.Tensor, vae_options: object = None) -> torch.Tensor:
        return self._decode(samples, tiled=False)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._encode(pixels, tiled=False)

    # The sizes that these nodes offer are not passed on: diffusers has its own tile and overlap for each VAE.
    def decode_tiled(self, samples: torch.Tensor, **tiles: object) -> torch.Tensor:
        return self._decode(samples, tiled=True)

    def encode_tiled(self, pixels: torch.Tensor, **tiles: object) -> torch.Tensor:
        return self._encode(pixels, tiled=True)

    def _decode(self, samples: torch.Tensor, *, tiled: bool) -> torch.Tensor:
        with unloading_when_full():
            pixels = self.model.engine.decode_pixels(flat(samples), tiled=tiled)
        return (pixels.movedim(1, -1) / 2 + 0.5).clamp(0, 1).to(management.intermediate_device())

    def _encode(self, pixels: torch.Tensor, *, tiled: bool) -> torch.Tensor:
        """Sides that are no multiple of the factor are cropped in the centre, as ComfyUI's own VAE does."""
        factor = self.downscale_ratio
        height, width = (side // factor * factor for side in pixels.shape[1:3])
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        pixels = pixels[:, top : top + height, left : left + width, :3]
        with unloading_when_full():
            latents = self.model.engine.encode_pixels(pixels.movedim(-1, 1) * 2 - 1, tiled=tiled)
        return latents.to(management.intermediate_device())

    def spacial_compression_decode(self) -> int:
        return self.upscale_ratio

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio

    def temporal_compression_decode(self) -> None:
        return None

    def temporal_compression_encode(self) -> None:
        return None

    def throw_exception_if_invalid(self) -> None:
        return None
