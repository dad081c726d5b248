"""ComfyUI's LATENT, in and out: raw VAE space, float32, with keys that belong to others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from candela.errors import InvalidRequest

EMPTY_CHANNELS = (4, 16)  # ComfyUI's empty-latent nodes make these
EMPTY_FACTOR = 8  # pixels a side per latent of theirs; newer ones say it
SAID_FACTOR = "downscale_ratio_spacial"
KEY = "candela_repainted"


@dataclass(frozen=True)
class Given:
    """What a LATENT asks for: its size in pixels, number of pictures, and whether it is a picture to start from.

    `latents` and `mask` are None for an empty latent; `offsets` are added to the seed, one per picture."""

    width: int
    height: int
    number: int
    latents: torch.Tensor | None
    mask: torch.Tensor | None
    offsets: tuple[int, ...]


def read(latent: dict[str, Any], channels: int, factor: int) -> Given:
    """`channels` is the model's own number, `factor` the pixels a side that its VAE makes of a latent. An empty latent
    asks for a size in pixels, so there the factor of the node that made it counts, as in KSampler.

    Raises:
        InvalidRequest: samples of another shape or number of channels, in numbers.
    """
    samples = flat(latent["samples"])
    if samples.ndim != 4:
        raise InvalidRequest(
            f"the LATENT has the shape {list(samples.shape)}; a batch of pictures is [pictures, {channels}, "
            f"height / {factor}, width / {factor}]"
        )
    number, found, rows, columns = samples.shape
    empty = not samples.any()
    if found != channels and not (empty and found in EMPTY_CHANNELS):
        raise InvalidRequest(
            f"the LATENT has {found} channels; this model's VAE has {channels}. Encode the picture with the VAE that "
            "Load model gives, or connect an empty latent of 4 or 16 channels"
        )
    offsets = latent.get("batch_index") or range(number)
    if len(offsets) != number:
        raise InvalidRequest(f"the LATENT holds {number} pictures, but batch_index names {len(offsets)}")
    mask = latent.get("noise_mask")
    if mask is not None and not empty and not mask.any():
        raise InvalidRequest(
            "the mask is empty, so nothing would be painted: right-click the picture in Load Image, open it in the "
            "MaskEditor and paint over what should change, or take the mask away"
        )
    pixels = latent.get(SAID_FACTOR, EMPTY_FACTOR) if empty else factor
    return Given(
        width=columns * pixels,
        height=rows * pixels,
        number=number,
        latents=None if empty else samples.float(),
        mask=None if empty or mask is None else _scaled(mask, rows, columns, number),
        offsets=tuple(int(k) for k in offsets),
    )


def flat(samples: torch.Tensor) -> torch.Tensor:
    """Video latents of one frame, [B, C, 1, h, w], are pictures."""
    return samples.squeeze(2) if samples.ndim == 5 and samples.shape[2] == 1 else samples


def write(latent: dict[str, Any] | None, samples: torch.Tensor, given: Given | None = None) -> dict[str, Any]:
    """`latent` with `samples` in place of its own, everything else kept."""
    out = {**(latent or {}), "samples": samples}
    out.pop(SAID_FACTOR, None)
    if latent and given and given.latents is not None and given.mask is not None:
        out[KEY] = Repainted(samples, given.latents, latent["noise_mask"])
    return out


@dataclass(frozen=True, eq=False)
class Repainted:
    """How the sampler made `samples`: from `start`, under `mask` in pixels.

    A VAE's decoder mixes neighbours, and its group norms all of the picture, so that what was to stay comes out
    changed. With this, Decode can put it back."""

    samples: torch.Tensor
    start: torch.Tensor
    mask: torch.Tensor

    @staticmethod
    def of(latent: dict[str, Any]) -> Repainted | None:
        """Only if no node changed the samples since: a new tensor is another picture."""
        found = latent.get(KEY)
        return found if isinstance(found, Repainted) and found.samples is latent["samples"] else None

    def put_back(self, pictures: list[Image.Image], decode: Callable[[torch.Tensor], list[Image.Image]]) -> None:
        """Replaces in each picture what lies outside the mask by the start's own round trip through the VAE."""
        kept = decode(self.start)
        height, width = pictures[0].height, pictures[0].width
        masks = _scaled(self.mask, height, width, len(pictures))[:, 0].mul(255).round().byte().cpu().numpy()
        for k, picture in enumerate(pictures):
            mask = Image.fromarray(masks[k % len(masks)])
            pictures[k] = Image.composite(picture, kept[k % len(kept)], mask)


def _scaled(mask: torch.Tensor, height: int, width: int, number: int) -> torch.Tensor:
    """noise_mask, [H, W] to [B, 1, H, W] in pixels -> [1 or number, 1, height, width], as KSampler scales it."""
    mask = mask.reshape(-1, 1, mask.shape[-2], mask.shape[-1]).float()
    if len(mask) not in (1, number):
        mask = mask[torch.arange(number) % len(mask)]
    return torch.nn.functional.interpolate(mask, size=(height, width), mode="bilinear").clamp(0, 1)
