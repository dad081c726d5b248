"""Is this the picture that the prompt asked for? Reads shape, colours, place and size from pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from candela.demo.world import (
    COLOUR_WORDS,
    COLOURS,
    OFFSET,
    PLACE_WORDS,
    PLACES,
    SHAPE_WORDS,
    SHAPES,
    SIZE_WORDS,
    SIZES,
    Scene,
    shape_mask,
)

STRICT = 0.8  # overlap (intersection over union) with the template from which a shape counts as well drawn
CONTRAST = 40.0  # RGB distance from the background at which a pixel may belong to the shape
SPECK = 0.003  # of the canvas; smaller patches are not counted as shapes


@dataclass(frozen=True)
class Picture:
    """What is seen: `scene`, how many shapes, and the overlap with each shape's template stretched over the box."""

    scene: Scene
    shapes: int
    overlaps: dict[str, float]


@dataclass(frozen=True)
class Check:
    """A picture held against a prompt. What the prompt leaves open (None in `expected`) is always right."""

    expected: Scene
    found: Scene
    shapes: int
    overlap: float

    def _same(self, name: str) -> bool:
        expected = getattr(self.expected, name)
        return expected is None or expected == getattr(self.found, name)

    @property
    def colour(self) -> bool:
        return self._same("colour")

    @property
    def background(self) -> bool:
        return self._same("background")

    @property
    def shape(self) -> bool:
        """The right class: the expected template overlaps more than any other."""
        return self._same("shape")

    @property
    def strict(self) -> bool:
        """The right class, well drawn: overlap over 0.8."""
        return self.shape and self.overlap > STRICT

    @property
    def place(self) -> bool:
        return self._same("place")

    @property
    def size(self) -> bool:
        return self._same("size")

    @property
    def ok(self) -> bool:
        """Everything right: one shape, strictly, with its colours, place and size."""
        return self.shapes == 1 and self.colour and self.background and self.strict and self.place and self.size


def check(image: Image.Image, prompt: str | Scene) -> Check:
    """Holds `image` (RGB, any size) against `prompt`, or against a scene given outright.

    Raises:
        ValueError: the prompt names nothing of the demo's world.
    """
    expected = read_prompt(prompt) if isinstance(prompt, str) else prompt
    if expected == Scene():
        raise ValueError(
            f"the prompt {prompt!r} names no shape, colour, place or size of the demo's world: "
            f"shapes {', '.join(SHAPES)}; colours {', '.join(COLOURS)}"
        )
    picture = read_picture(image)
    shape = expected.shape or picture.scene.shape
    return Check(expected, picture.scene, picture.shapes, picture.overlaps.get(shape or "", 0.0))


def read_prompt(prompt: str) -> Scene:
    """The scene that a sentence asks for, by its words; None where it says nothing."""
    text = " ".join(re.findall(r"[a-z-]+", prompt.lower()))
    shape = _find(text, SHAPE_WORDS)
    colours = [(m.start(), m.end(), COLOUR_WORDS[m.group()]) for m in _words(COLOUR_WORDS).finditer(text)]
    background = next(
        (c for c in colours if re.match(r"\s*background\b", text[c[1] :])),
        next((c for c in colours if re.search(r"\b(on|against|over)( an?| the)?\s*$", text[: c[0]])), None),
    )
    others = [c for c in colours if c is not background]
    return Scene(
        shape=shape,
        colour=others[0][2] if others else None,
        background=background[2] if background else None,
        place=_find(text, PLACE_WORDS),
        size=_find(text, SIZE_WORDS),
    )


def _words(table: dict[str, str]) -> re.Pattern[str]:
    longest_first = sorted(table, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b")


def _find(text: str, table: dict[str, str]) -> str | None:
    for word in sorted(table, key=len, reverse=True):
        if re.search(rf"\b{re.escape(word)}\b", text):
            return table[word]
    return None


def read_picture(image: Image.Image) -> Picture:
    """Border median = background; the largest patch of another colour = the shape, named by its template."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height, width, _ = pixels.shape
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)
    found = Scene(background=_nearest_colour(background))
    if (distance > CONTRAST).sum() < SPECK * distance.size:
        return Picture(found, 0, {})
    colour = np.median(pixels[distance > CONTRAST], axis=0)
    labels, areas = _patches((np.linalg.norm(pixels - colour, axis=-1) < distance) & (distance > CONTRAST / 2))
    count = int((areas >= SPECK * distance.size).sum())
    mask = labels == areas.argmax()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = mask[top:bottom, left:right]
    overlaps = {}
    for name in SHAPES:
        template = shape_mask(name, *box.shape)
        overlaps[name] = float((box & template).sum() / (box | template).sum())
    radius = math.sqrt((bottom - top) * (right - left)) / 2 / min(width, height)
    dx, dy = (left + right) / 2 / width - 0.5, (top + bottom) / 2 / height - 0.5
    third = tuple(0 if abs(d) < OFFSET / 2 else int(math.copysign(1, d)) for d in (dx, dy))
    scene = Scene(
        shape=max(overlaps, key=overlaps.__getitem__),
        colour=_nearest_colour(colour),
        background=found.background,
        place=next(name for name, position in PLACES.items() if position == third),
        size=min(SIZES, key=lambda name: abs(math.log(radius / SIZES[name]))),
    )
    return Picture(scene, count, overlaps)


def _nearest_colour(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(rgb - np.array(COLOURS[name]))))


def _patches(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels 4-connected patches of `mask`: -> (labels, 0 outside; area of each label, 0 for label 0).

    Every pixel starts with a number of its own and takes the highest of its neighbours' until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        highest = np.maximum.reduce(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        spread = np.where(mask, highest, 0)
        if (spread == labels).all():
            break
        labels = spread
    _, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(mask.shape) + (0 if (~mask).any() else 1)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return labels, areas
