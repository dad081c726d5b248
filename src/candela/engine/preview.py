"""Pictures from latents without the VAE, while a model runs.

Small ones by a linear map from channels to red, green and blue, fitted once per engine from the VAE itself, on a chart
of flat colours, so any VAE has one. Whole ones by TAEF1, where it is installed and the latents are Flux's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from candela.checkpoints.catalogue import preview_decoder
from candela.errors import CandelaWarning, DamagedFile

CHART, PATCH = 16, 16  # patches a side, pixels per patch
PIXELS = (CHART * PATCH) ** 2  # of the chart
FACTOR = 8  # of TAEF1: pixels a side per latent
FLUX: dict[str, Any] = {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}  # of the VAE that TAEF1 stands in for

# (latents in the model's scale, raw latents), both [B, C, h, w] -> B pictures
Previewer = Callable[[torch.Tensor, torch.Tensor], list[Image.Image]]


def previewer(vae: Any, device: torch.device, dtype: torch.dtype) -> Previewer:
    """The best there is for `vae`, in the transformer's `dtype`; a decoder that cannot be loaded is told as a
    warning."""
    try:
        if folder := _decoder_for(vae):
            return _tiny(folder, device, dtype)
    except DamagedFile as error:
        warnings.warn(f"previews are small and rough: {error}", CandelaWarning, stacklevel=2)
    projection = fit(vae)
    return lambda latents, raw: render(raw, projection)


def work(vae: Any, width: int, height: int, dtype: torch.dtype, device: str) -> int:
    """Bytes that a preview of a picture takes beside the weights, on a device of that kind; 0 where it is small."""
    from diffusers import AutoencoderTiny

    from candela.checkpoints import Part
    from candela.engine.measuring import Tally, tensors
    from candela.engine.skeletons import without_weights

    try:
        if not (folder := _decoder_for(vae)):
            return 0
        config = dict(AutoencoderTiny.load_config(folder, local_files_only=True))
        decoder = without_weights(Part(folder, "diffusers", "AutoencoderTiny", config), "vae", dtype)
        latents = torch.empty(1, FLUX["latent_channels"], height // FACTOR, width // FACTOR, dtype=dtype, device="meta")
        tally = Tally(list(tensors(decoder)), device)
        with torch.no_grad(), tally:
            _pixels(decoder, latents)
        return tally.peak
    except Exception:  # it is damaged: then previews are small, and `previewer` says why
        return 0


def _decoder_for(vae: Any) -> Path | None:
    """
    Raises:
        DamagedFile: what is installed cannot be told.
    """
    return preview_decoder() if all(vae.config.get(key) == value for key, value in FLUX.items()) else None


def _pixels(decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    return decoder.decode(latents, return_dict=False)[0].float().clamp(-1, 1)


def _tiny(folder: Path, device: torch.device, dtype: torch.dtype) -> Previewer:
    """TAEF1 (github.com/madebyollin/taesd): 1.2 million parameters that decode latents in the model's scale, one
    picture at a time.

    Raises:
        DamagedFile: it cannot be loaded.
    """
    from diffusers import AutoencoderTiny
    from diffusers.image_processor import VaeImageProcessor

    try:
        decoder = AutoencoderTiny.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # diffusers, safetensors and torch each have their own
        said = " ".join(str(error).split())[:160]
        raise DamagedFile(
            f"the preview decoder in {folder} cannot be loaded ({said or type(error).__name__}). Bring it again: "
            "candela install taef1"
        ) from error
    decoder = decoder.to(device, dtype).eval()

    @torch.no_grad()
    def decode(latents: torch.Tensor, raw: torch.Tensor) -> list[Image.Image]:
        pictures = []
        for single in latents.to(device, dtype).split(1):
            pictures += VaeImageProcessor().postprocess(_pixels(decoder, single), output_type="pil")
        return pictures

    return decode


@torch.no_grad()
def fit(vae: Any) -> torch.Tensor:
    """Least squares of colour on the VAE's encoding of a chart -> [C + 1, 3], the last row constant."""
    generator = torch.Generator("cpu").manual_seed(0)
    colours = torch.rand((1, 3, CHART, CHART), generator=generator) * 2 - 1
    chart = colours.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    raw = vae.encode(chart.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
    target = torch.nn.functional.avg_pool2d(chart, chart.shape[-1] // raw.shape[-1])
    features = torch.cat([raw, torch.ones_like(raw[:, :1])], dim=1)
    rows = features[0].flatten(1).T
    return torch.linalg.lstsq(rows, target[0].flatten(1).T).solution


def render(raw: torch.Tensor, projection: torch.Tensor) -> list[Image.Image]:
    """raw latents [B, C, h, w] -> one picture of w x h pixels each."""
    raw = raw.detach().float().cpu()
    rgb = torch.einsum("bchw,cd->bhwd", raw, projection[:-1]) + projection[-1]
    pixels = ((rgb + 1) * 127.5).nan_to_num().clamp(0, 255).byte().numpy()
    return [Image.fromarray(picture) for picture in pixels]
