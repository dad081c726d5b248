"""The embedded weights: small, clean, and able. `make check-demo` measures the same on 300 prompts."""

from __future__ import annotations

import json
import random

from candela import Request
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import check, held_out_prompts


def outcomes(demo, number, **size):
    prompts = held_out_prompts(number, seed=5)
    images = demo.generate(Request([text for text, _ in prompts], seed=100, **size)).images
    return [check(image, scene) for image, (_, scene) in zip(images, prompts)], images, prompts


def test_at_most_ten_megabytes():
    assert sum(p.stat().st_size for p in DEMO_FOLDER.rglob("*") if p.is_file()) <= 10_000_000


def test_no_path_of_the_machine_it_was_made_on():
    for file in DEMO_FOLDER.rglob("*.json"):
        content = json.loads(file.read_text())
        assert "_name_or_path" not in content
        assert "/home/" not in file.read_text()
        assert "/root/" not in file.read_text()


def test_draws_what_it_never_saw(demo):
    found, images, prompts = outcomes(demo, 48)
    assert sum(c.colour and c.background for c in found) >= 46
    assert sum(c.ok for c in found) >= 42
    others = random.Random(0).sample(prompts, 48)
    shuffled = [check(image, scene) for image, (_, scene) in zip(images, others)]
    assert sum(c.ok for c in shuffled) <= 4


def test_other_sizes(demo):
    for width, height in [(96, 96), (160, 160), (192, 128)]:
        found, *_ = outcomes(demo, 18, width=width, height=height)
        assert sum(c.colour and c.background for c in found) >= 17
        assert sum(c.shapes == 1 for c in found) >= 17
