"""Equal prompts are encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from candela import Engine, Request
from candela.engine.embeddings import Embeddings
from candela.families import Conditioning


@pytest.fixture
def counted(tiny_models):
    """-> (engine, list that grows by the number of tokens whenever the text encoder's first layer runs)"""
    engine = Engine.load(tiny_models["lumina-image-2"], device="cpu")
    runs: list[int] = []
    layers = engine.components.text_encoder.layers
    layers[0].register_forward_hook(lambda module, arguments, out: runs.append(arguments[0].shape[1]))
    last: list[int] = []
    layers[-1].register_forward_hook(lambda *_: last.append(1))
    yield engine, runs
    assert not last, "the last layer ran, whose result nobody uses"


SIZE = {"width": 64, "height": 64, "steps": 2}


def test_an_equal_prompt_is_encoded_once(counted):
    engine, runs = counted
    first = engine.generate(Request("a red star", **SIZE))
    assert len(runs) == 2  # the prompt, and the empty negative one
    second = engine.generate(Request("a red star", **SIZE))
    assert len(runs) == 2
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(second.images[0]))
    engine.generate(Request(["a red star", "a cross", "a cross"], seed=5, **SIZE))
    assert len(runs) == 3


def test_a_text_is_another_one_as_a_negative(counted):
    """Lumina puts its system prompt before the one only."""
    engine, runs = counted
    conditioning = engine.encode(["star"], ["star"])
    assert len(runs) == 2
    assert conditioning.positive[0].shape != conditioning.negative[0].shape
    again = engine.encode(["star"], ["star"])
    assert torch.equal(again.negative[0], conditioning.negative[0])


def test_the_oldest_go_when_there_are_too_many():
    asked: list[str] = []

    def encode(prompts, negatives):
        asked.extend(prompts)
        return Conditioning(tuple(prompts), tuple(torch.full((4, 8), float(ord(p))) for p in prompts))

    kept = Embeddings(limit=3 * 4 * 8 * 4)
    for prompt in "abcab":
        assert kept.encode([prompt], None, encode).positive[0][0, 0] == ord(prompt)
    assert asked == ["a", "b", "c"]
    kept.encode(["d"], None, encode)  # c has waited longest
    kept.encode(["a", "b"], None, encode)
    kept.encode(["c"], None, encode)
    assert asked == ["a", "b", "c", "d", "c"]


def test_more_at_once_than_are_kept():
    kept = Embeddings(limit=1)
    features = kept.encode(
        ["a", "b"], ["c", "c"],
        lambda p, n: Conditioning(tuple(p), tuple(torch.zeros(1, 1) for _ in p), tuple(torch.ones(1, 1) for _ in n)),
    )  # fmt: skip
    assert len(features.positive) == 2
    assert [one.item() for one in features.negative] == [1, 1]
