"""Training pictures and captions, drawn from the demo's world, never from a held-out triple."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageDraw

from candela.demo.world import COLOURS, HELD_OUT, PLACES, SHAPES, Scene, caption

TRIPLES = [(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b and (s, c, b) not in HELD_OUT]
# (width, height) and its share of the batches. 128x128 is the default size, hence the largest.
BUCKETS = {
    (128, 128): 0.42, (96, 96): 0.11, (160, 160): 0.10, (192, 128): 0.09, (128, 192): 0.09,
    (160, 128): 0.05, (128, 160): 0.05, (192, 192): 0.04, (144, 96): 0.025, (96, 144): 0.025,
}  # fmt: skip
# Stars and small shapes are the hard cases: seen more often than their share.
SHAPE_WEIGHTS = {"circle": 0.7, "square": 0.7, "triangle": 1.2, "diamond": 1.0, "star": 3.0, "cross": 1.2}
SIZE_WEIGHTS = {"small": 1.5, "medium": 1.0, "large": 0.8}


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture -> float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def training_scene(rng: random.Random, weights: dict[str, float] = SHAPE_WEIGHTS) -> Scene:
    shape = rng.choices(list(weights), list(weights.values()))[0]
    _, colour, background = rng.choice([t for t in TRIPLES if t[0] == shape])
    size = rng.choices(list(SIZE_WEIGHTS), list(SIZE_WEIGHTS.values()))[0]
    return Scene(shape, colour, background, rng.choice(list(PLACES)), size)


def training_caption(scene: Scene, rng: random.Random, long: bool) -> str:
    """A caption that may leave the background open, a centred place or a medium size; 5 % are empty.

    Only the usual is left unsaid: with every place and size as likely, eight steps blend several into one."""
    if rng.random() < 0.05:
        return ""
    shown = Scene(
        scene.shape,
        scene.colour,
        None if rng.random() < 0.06 else scene.background,
        None if scene.place == "centre" and rng.random() < 0.6 else scene.place,
        None if scene.size == "medium" and rng.random() < 0.5 else scene.size,
    )
    return caption(shown, rng, long)


def clutter(width: int, height: int, rng: random.Random) -> Image.Image:
    """Several overlapping shapes in arbitrary colours: what the VAE sees beyond the demo's own pictures."""
    scale = 4
    colour = lambda: tuple(rng.randrange(256) for _ in range(3))  # noqa: E731
    canvas = Image.new("RGB", (width * scale, height * scale), colour())
    for _ in range(rng.randint(2, 6)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(6, 40)
        points = [
            ((x + px * radius) * scale, (y + py * radius) * scale) for px, py in rng.choice(list(SHAPES.values()))
        ]
        ImageDraw.Draw(canvas).polygon(points, fill=colour())
    return canvas.resize((width, height), Image.Resampling.BOX)
