"""A VAE that takes a picture in overlapping pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TILE = 512  # pixels a side of a piece


@contextmanager
def tiling(vae: Any, tiled: bool) -> Iterator[None]:
    """Switches diffusers' own tiling on for a while, in tiles of 512 pixels at most: its own may be whole pictures."""
    sizes = ("tile_sample_min_size", "tile_latent_min_size")  # in pixels and in latents, the VAE's factor apart
    own = {name: getattr(vae, name) for name in sizes if tiled and hasattr(vae, name)}
    if tiled:
        vae.enable_tiling()
    if len(own) == 2 and (pixels := own[sizes[0]]) > TILE:
        vars(vae).update(zip(sizes, (TILE, own[sizes[1]] * TILE // pixels)))
    try:
        yield
    finally:
        vars(vae).update(own)
        if tiled:
            vae.disable_tiling()
