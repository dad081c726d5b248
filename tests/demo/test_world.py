"""The checker reads pictures and prompts right, and cannot be satisfied by the wrong ones."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from candela.demo import COLOURS, HELD_OUT, PLACES, SHAPES, SIZES, Scene, check, draw, held_out_prompts, read_prompt
from candela.demo.world import caption, random_scene
from training import data

ALL = [(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]


def test_every_shape_place_and_size_is_read_back():
    rng = random.Random(0)
    for shape in SHAPES:
        for place in PLACES:
            for size in SIZES:
                _, colour, background = rng.choice(ALL)
                if colour == background:
                    continue
                scene = Scene(shape, colour, background, place, size)
                outcome = check(draw(scene, *rng.choice(list(data.BUCKETS)), rng), scene)
                assert outcome.ok, outcome


def test_every_pair_of_colours_is_read_back():
    for _, colour, background in ALL[:90]:
        scene = Scene("circle", colour, background, "centre", "medium")
        assert check(draw(scene, 96, 96), scene).ok


def test_any_wrong_field_is_noticed():
    scene = Scene("star", "red", "blue", "top left", "large")
    image = draw(scene, 128, 128)
    assert check(image, scene).ok
    for wrong in [
        Scene("cross", "red", "blue", "top left", "large"),
        Scene("star", "pink", "blue", "top left", "large"),
        Scene("star", "red", "cyan", "top left", "large"),
        Scene("star", "red", "blue", "top", "large"),
        Scene("star", "red", "blue", "top left", "medium"),
    ]:
        assert not check(image, wrong).ok


def test_two_shapes_or_none_are_noticed():
    scene = Scene("circle", "red", "blue", "left", "small")
    image = draw(scene, 128, 128)
    image.paste(draw(Scene("circle", "red", "blue", "right", "small"), 128, 128).crop((64, 0, 128, 128)), (64, 0))
    outcome = check(image, scene)
    assert outcome.shapes == 2
    assert not outcome.ok
    empty = check(Image.new("RGB", (64, 64), COLOURS["blue"]), scene)
    assert empty.shapes == 0
    assert empty.background
    assert not empty.ok


def test_a_smudge_is_not_a_well_drawn_shape():
    scene = Scene("star", "red", "blue", "centre", "medium")
    image = draw(scene, 128, 128).resize((16, 16)).resize((128, 128))
    assert not check(image, scene).strict


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a red circle", Scene("circle", "red")),
        ("Tiny violet rhombus, upper right, on white.", Scene("diamond", "purple", "white", "top right", "small")),
        ("on a black background, a big turquoise plus sign", Scene("cross", "cyan", "black", None, "large")),
        ("orange background, star, yellow, in the middle", Scene("star", "yellow", "orange", "centre")),
        ("a green square on pink at the bottom", Scene("square", "green", "pink", "bottom")),
        ("a dog", Scene()),
    ],
)  # fmt: skip
def test_prompts_are_read(prompt, scene):
    assert read_prompt(prompt) == scene


def test_every_caption_is_read_back():
    rng = random.Random(2)
    for k in range(1500):
        full = random_scene(rng, ALL)
        open_or_not = (v if rng.random() < 0.8 else None for v in (full.background, full.place, full.size))
        scene = Scene(full.shape, full.colour, *open_or_not)
        text = caption(scene, rng, long=k % 5 == 0)
        assert read_prompt(text) == scene, text


def test_a_prompt_from_another_world_is_refused():
    with pytest.raises(ValueError, match="'a dog' names no shape"):
        check(Image.new("RGB", (32, 32)), "a dog")


def test_a_tenth_of_the_triples_is_held_out_and_never_trained_on():
    assert len(HELD_OUT) == len(ALL) // 10
    assert not HELD_OUT & set(data.TRIPLES)
    rng = random.Random(0)
    for _ in range(3000):
        scene = data.training_scene(rng)
        assert (scene.shape, scene.colour, scene.background) not in HELD_OUT
    asked = held_out_prompts(60)
    assert all((s.shape, s.colour, s.background) in HELD_OUT for _, s in asked)
    assert all(read_prompt(text) == scene for text, scene in asked)
