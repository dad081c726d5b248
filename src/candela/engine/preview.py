"""Small pictures from latents without the VAE: a linear map from channels to red, green and blue.

The map is fitted once per engine from the VAE itself, on a chart of flat colours, so any VAE has one.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

CHART, PATCH, FACTOR = 16, 16, 8  # patches a side, pixels per patch, VAE factor
PIXELS = (CHART * PATCH) ** 2  # of the chart


@torch.no_grad()
def fit(vae: Any) -> torch.Tensor:
    """Least squares of colour on the VAE's encoding of a chart -> [C + 1, 3], the last row constant."""
    generator = torch.Generator("cpu").manual_seed(0)
    colours = torch.rand((1, 3, CHART, CHART), generator=generator) * 2 - 1
    chart = colours.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    raw = vae.encode(chart.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
    target = torch.nn.functional.avg_pool2d(chart, FACTOR)
    features = torch.cat([raw, torch.ones_like(raw[:, :1])], dim=1)
    rows = features[0].flatten(1).T
    return torch.linalg.lstsq(rows, target[0].flatten(1).T).solution


def render(raw: torch.Tensor, projection: torch.Tensor) -> list[Image.Image]:
    """raw latents [B, C, h, w] -> one picture of w x h pixels each."""
    raw = raw.detach().float().cpu()
    rgb = torch.einsum("bchw,cd->bhwd", raw, projection[:-1]) + projection[-1]
    pixels = ((rgb + 1) * 127.5).nan_to_num().clamp(0, 255).byte().numpy()
    return [Image.fromarray(picture) for picture in pixels]
