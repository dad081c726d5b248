"""Requests are checked when they are built, in numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from candela import InvalidRequest, Request
from candela.engine.request import MAX_SEED
from candela.families import FAMILIES, Defaults

Z_IMAGE = FAMILIES[0]
PICTURE = Image.new("RGB", (96, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": ["a", 5]}, "must be text, not int"),
        ({"prompt": "a\ud800"}, "holds a character that is no text"),
        ({"prompt": "a", "negative_prompt": ["b", "c"]}, "2 negative prompts for 1 prompts"),
        ({"prompt": "a", "width": 0}, "width 0 is out of range"),
        ({"prompt": "a", "height": -16}, "height -16 is out of range"),
        ({"prompt": "a", "width": 1_000_000}, "width 1000000 is out of range: 1 to 16384"),
        ({"prompt": "a", "width": 128.5}, "width must be a whole number, not 128.5"),
        ({"prompt": "a", "steps": 0}, "steps 0 is out of range: 1 to 1000"),
        ({"prompt": "a", "steps": True}, "steps must be a whole number, not True"),
        ({"prompt": "a", "count": 0}, "count 0 is out of range"),
        ({"prompt": "a", "seed": -1}, "seed -1 is out of range"),
        ({"prompt": "a", "seed": MAX_SEED + 1}, f"seed {MAX_SEED + 1} is out of range"),
        ({"prompt": ["a", "b"], "seed": MAX_SEED}, f"the highest is {MAX_SEED - 1}"),
        ({"prompt": ["a", "b"], "seed": [1]}, "1 seeds for 2 pictures"),
        ({"prompt": "a", "seed": [MAX_SEED + 1]}, f"seed {MAX_SEED + 1} is out of range"),
        ({"prompt": "a", "seed": "7"}, "seed must be a whole number, not '7'"),
        ({"prompt": "a", "guidance": -1}, "guidance -1 is out of range: 0 to 100"),
        ({"prompt": "a", "guidance": float("nan")}, "guidance nan is out of range"),
        ({"prompt": "a", "guidance": "much"}, "guidance must be a number, not 'much'"),
        ({"prompt": "a", "strength": 0.5}, "strength 0.5 needs an image or latents"),
        ({"prompt": "a", "strength": 1.5, "image": PICTURE}, "strength 1.5 is out of range: 0 to 1"),
        ({"prompt": "a", "strength": 0.0, "image": PICTURE}, "strength 0 leaves no step to run"),
        ({"prompt": "a", "mask": torch.ones(1, 1, 8, 12)}, "a mask needs an image or latents"),
        ({"prompt": "a", "image": PICTURE, "mask": torch.ones(8, 12)}, r"mask must have the shape \[1 or 1, 1,"),
        ({"prompt": "a", "image": PICTURE, "latents": torch.ones(1, 16, 8, 8)}, "both image and latents"),
        ({"prompt": "a", "latents": torch.ones(3, 16, 8, 8)}, r"not \[3, 16, 8, 8\]"),
        ({"prompt": "a", "image": "start.png"}, "image must be a picture of PIL, not str: open a file with"),
        ({"prompt": "a", "image": Image.new("F", (8, 8))}, "pixels of floating-point numbers"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InvalidRequest, match=message):
        Request(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 100}, "width 100 is not a multiple of 16: use 96 or 112"),
        ({"image": Image.new("RGB", (100, 64))}, "start image is 100x64.*width 96 and height 64"),
        ({"width": 8200}, "width 8200 is out of range: z-image makes pictures of 16 to 8192 pixels a side"),
        ({"image": Image.new("RGB", (9001, 64))}, "start image is 9001x64.*width 8192 and height 64"),
        ({"latents": torch.ones(1, 16, 8, 8), "width": 128}, "make a picture of 64x64, not 128x64"),
        (
            {"image": PICTURE, "steps": 8, "strength": 1e-17},
            "strength 1e-17 leaves none of 8 steps to run: use at least",
        ),
    ],
)
def test_refused_by_the_family(arguments, message):
    with pytest.raises(InvalidRequest, match=message):
        Request("a", **arguments).resolved(Z_IMAGE, Defaults())


def test_defaults_fill_what_is_open_and_nothing_else():
    full = Request("a", steps=3).resolved(Z_IMAGE, Defaults(128, 96, 8, 2.0))
    assert (full.width, full.height, full.steps, full.guidance) == (128, 96, 3, 2.0)
    assert Request("a", guidance=0).resolved(Z_IMAGE, Defaults(guidance=4.0)).guidance == 0.0


def test_the_start_image_gives_the_size():
    full = Request("a", image=PICTURE).resolved(Z_IMAGE, Defaults(128, 128))
    assert (full.width, full.height, full.strength) == (96, 64, 0.6)
    full = Request("a", image=PICTURE, width=128).resolved(Z_IMAGE, Defaults(256, 256))
    assert (full.width, full.height) == (128, 64)
    masked = Request("a", image=PICTURE, mask=torch.ones(1, 1, 8, 12)).resolved(Z_IMAGE, Defaults())
    assert masked.strength == 1.0


def test_one_picture_of_many():
    latents = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 16, 8, 8)
    request = Request(["a", "b"], ["c", "d"], seed=5, count=2, latents=latents, strength=0.5)
    third = request.alone(2)
    assert (third.prompts, third.negatives, third.seed, third.total) == (("b",), ("d",), 7, 1)
    assert third.latents[0, 0, 0, 0] == 2
    assert third.strength == 0.5


def test_a_request_is_frozen_and_takes_one_or_many_prompts():
    request = Request(["a", "b"], "c", count=3)
    assert request.total == 6
    assert request.negatives == ("c", "c")
    assert Request("a").prompts == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.seed = 1


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_text_has_a_limit(name):
    texts = {"prompt": "a"} | {name: "a" * 100_000}
    Request(**texts)
    with pytest.raises(InvalidRequest, match="of 100001 characters is too long: the limit is 100000"):
        Request(**texts | {name: "a" * 100_001})


def test_a_picture_that_ends_early_is_told_before_anything_runs(tmp_path):
    path = tmp_path / "a.jpg"
    Image.effect_noise((96, 96), 60).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InvalidRequest, match="cannot be read as a picture"):
        Request("a red star", image=Image.open(path))
