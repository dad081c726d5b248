"""The demo model's world: one flat shape on a flat background, and the words for it.

Everything that trains, prompts or judges the demo model draws from this file, so
that "right" means one thing. Coordinates are fractions of the canvas; a shape's
`radius` is half of its bounding box, as a fraction of the canvas's shorter side.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (250, 140, 30),
    "yellow": (250, 225, 50),
    "green": (40, 160, 70),
    "cyan": (60, 205, 220),
    "blue": (40, 80, 220),
    "purple": (130, 50, 180),
    "pink": (250, 150, 200),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
SIZES = {"small": 0.15, "medium": 0.21, "large": 0.29}
OFFSET = 0.18  # of a place's centre from the canvas's centre
PLACES = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}


def _star() -> list[tuple[float, float]]:
    points = [
        (radius * math.sin(math.pi * k / 5), -radius * math.cos(math.pi * k / 5))
        for k, radius in enumerate([1.0, 0.5] * 5)
    ]
    return _fill_box(points)


def _fill_box(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Stretches `points` so that they touch all four sides of the box [-1, 1] x [-1, 1]."""
    xs, ys = zip(*points)
    return [
        (2 * (x - min(xs)) / (max(xs) - min(xs)) - 1, 2 * (y - min(ys)) / (max(ys) - min(ys)) - 1) for x, y in points
    ]


_ARM = 0.38  # half the width of the cross's arms
SHAPES: dict[str, list[tuple[float, float]]] = {
    "circle": [(math.cos(2 * math.pi * k / 90), math.sin(2 * math.pi * k / 90)) for k in range(90)],
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "star": _star(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip

# The words a prompt may use, each with the name it stands for. Longer phrases come first.
SHAPE_WORDS = {**{name: name for name in SHAPES}, "rhombus": "diamond", "plus sign": "cross", "disc": "circle"}
COLOUR_WORDS = {**{name: name for name in COLOURS}, "violet": "purple", "turquoise": "cyan"}
SIZE_WORDS = {
    "small": "small", "tiny": "small", "little": "small",
    "medium-sized": "medium", "medium": "medium",
    "large": "large", "big": "large", "huge": "large",
}  # fmt: skip
PLACE_WORDS = {
    **{f"{v} {side}": f"{name} {side}" for v, name in
       [("top", "top"), ("upper", "top"), ("bottom", "bottom"), ("lower", "bottom")] for side in ("left", "right")},
    "left": "left", "right": "right", "top": "top", "bottom": "bottom",
    "centre": "centre", "center": "centre", "middle": "centre",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `None` means that the prompt leaves it open."""

    shape: str | None = None
    colour: str | None = None
    background: str | None = None
    place: str | None = None
    size: str | None = None


def shape_mask(shape: str, height: int, width: int) -> np.ndarray:
    """The shape stretched over the whole of a `height` x `width` box, as booleans."""
    scale = 4
    canvas = Image.new("L", (width * scale, height * scale))
    points = [((x + 1) / 2 * width * scale, (y + 1) / 2 * height * scale) for x, y in SHAPES[shape]]
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX)) > 127


def draw(scene: Scene, width: int, height: int, rng: random.Random | None = None) -> Image.Image:
    """Draws `scene`, whose five fields must be set, antialiased. With `rng`, place and size vary a little."""
    assert scene.shape and scene.colour and scene.background and scene.place and scene.size
    jitter = rng.uniform if rng else lambda low, high: 0.0
    scale = 4
    radius = SIZES[scene.size] * (1 + jitter(-0.04, 0.04)) * min(width, height) * scale
    dx, dy = PLACES[scene.place]
    x = (0.5 + dx * OFFSET + jitter(-0.015, 0.015)) * width * scale
    y = (0.5 + dy * OFFSET + jitter(-0.015, 0.015)) * height * scale
    canvas = Image.new("RGB", (width * scale, height * scale), COLOURS[scene.background])
    points = [(x + px * radius, y + py * radius) for px, py in SHAPES[scene.shape]]
    ImageDraw.Draw(canvas).polygon(points, fill=COLOURS[scene.colour])
    return canvas.resize((width, height), Image.Resampling.BOX)


def _held_out() -> frozenset[tuple[str, str, str]]:
    def rank(triple: tuple[str, str, str]) -> str:
        return hashlib.sha256(" ".join(triple).encode()).hexdigest()

    held: set[tuple[str, str, str]] = set()
    for shape in SHAPES:
        triples = [(shape, c, b) for c in COLOURS for b in COLOURS if c != b]
        held.update(sorted(triples, key=rank)[: len(triples) // 10])
    return frozenset(held)


# A tenth of the (shape, colour, background) triples, 9 of each shape's 90: never trained on.
HELD_OUT = _held_out()


# --- captions -------------------------------------------------------------------------------

_PLACE_PHRASES = {
    "centre": ["in the centre", "in the center", "in the middle", "centre", "in the middle of the picture"],
    "left": ["on the left", "on the left side", "left", "at the left"],
    "right": ["on the right", "on the right side", "right", "at the right"],
    "top": ["at the top", "top", "near the top", "at the top of the picture"],
    "bottom": ["at the bottom", "bottom", "near the bottom", "at the bottom of the picture"],
}
for _v, _other in (("top", "upper"), ("bottom", "lower")):
    for _side in ("left", "right"):
        _PLACE_PHRASES[f"{_v} {_side}"] = [
            f"in the {_v} {_side}", f"in the {_v} {_side} corner", f"{_v} {_side}", f"at the {_other} {_side}",
        ]  # fmt: skip
_PATTERNS = [
    "a {thing} {place} on a {bg} background",
    "a {thing} on a {bg} background {place}",
    "a {thing} {place}, {bg} background",
    "a {thing} on {bg} {place}",
    "{thing} {place} on {bg}",
    "{thing}, {bg} background, {place}",
    "{bg} background, {thing}, {place}",
    "{bg} background with a {thing} {place}",
    "on a {bg} background, a {thing} {place}",
    "{place}, a {thing} on a {bg} background",
    "a {bg} background and a {thing} {place}",
    "the {thing} {place} of a {bg} background",
]
_OPEN_PATTERNS = ["a {thing} {place}", "{thing} {place}", "the {thing}, {place}", "{thing}"]
_OPENINGS = ["a picture of", "an image of", "draw", "please draw", "show me", "I want", "paint", "there is"]
_FLOURISHES = [
    "flat colours", "simple and clean", "minimal", "high quality", "sharp edges", "geometric art",
    "a drawing for children", "vector graphic", "a nice poster", "masterpiece", "very detailed", "plain",
    "solid colours", "best quality", "for a school book", "in a modern style",
]  # fmt: skip


def caption(scene: Scene, rng: random.Random, long: bool = False) -> str:
    """A sentence for `scene` in one of many phrasings; what is None in it goes unsaid.

    `long` adds an opening and several flourishes, for captions beyond 32 tokens."""
    words = {
        kind: rng.choice([w for w, name in table.items() if name == value] + [value] * 2) if value else ""
        for kind, table, value in [
            ("shape", SHAPE_WORDS, scene.shape),
            ("colour", COLOUR_WORDS, scene.colour),
            ("bg", COLOUR_WORDS, scene.background),
            ("size", SIZE_WORDS, scene.size),
        ]
    }
    thing = f"{words['size']} {words['colour']} {words['shape']}".strip()
    if words["size"] and rng.random() < 0.1:
        thing = f"{words['colour']} {words['shape']}, {words['size']},"
    place = rng.choice(_PLACE_PHRASES[scene.place]) if scene.place else ""
    pattern = rng.choice(_PATTERNS if words["bg"] else _OPEN_PATTERNS)
    if scene.place and "{place}" not in pattern:
        pattern += " {place}"
    text = pattern.format(thing=thing, place=place, bg=words["bg"])
    if long or rng.random() < 0.1:
        text = f"{rng.choice(_OPENINGS)} {text}"
    flourishes = rng.randint(4, 8) if long else int(rng.random() < 0.1)
    text = ", ".join([text, *rng.sample(_FLOURISHES, flourishes)])
    return _tidy(text, rng)


def _tidy(text: str, rng: random.Random) -> str:
    words = " ".join(text.replace(" ,", ",").split()).replace(",,", ",").replace(", ,", ",").strip(" ,").split(" ")
    for k, word in enumerate(words[:-1]):
        if word == "a" and words[k + 1][0] in "aeiou":
            words[k] = "an"
    text = " ".join(words)
    style = rng.random()
    if style < 0.35:
        text = text[0].upper() + text[1:] + "."
    elif style < 0.6:
        text = text[0].upper() + text[1:]
    return text


def random_scene(rng: random.Random, triples: list[tuple[str, str, str]]) -> Scene:
    shape, colour, background = rng.choice(triples)
    return Scene(shape, colour, background, rng.choice(list(PLACES)), rng.choice(list(SIZES)))


def held_out_prompts(number: int, seed: int = 0) -> list[tuple[str, Scene]]:
    """`number` prompts, with the scene each asks for, all on held-out triples, shapes in equal numbers.

    One in five leaves the place open and one in five the size (None in the scene)."""
    rng = random.Random(seed)
    shapes = list(SHAPES)
    prompts = []
    for k in range(number):
        triples = sorted(t for t in HELD_OUT if t[0] == shapes[k % len(shapes)])
        full = random_scene(rng, triples)
        place = None if rng.random() < 0.2 else full.place
        size = None if rng.random() < 0.2 else full.size
        scene = Scene(full.shape, full.colour, full.background, place, size)
        prompts.append((caption(scene, rng), scene))
    return prompts
