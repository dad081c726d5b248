"""Classes built in another precision and without memory, while other threads go on as ever."""

from __future__ import annotations

import threading

import pytest
import torch

from candela import Engine
from candela.checkpoints import read_checkpoint
from candela.checkpoints.building import default_dtype, without_memory
from candela.engine.skeletons import skeleton
from candela.families import family_of

HALF = torch.bfloat16
INTEGERS = torch.arange(300)


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.zeros(2),
        lambda: torch.tensor([0.1, 2]),
        lambda: torch.tensor(0.1),
        lambda: torch.full((2,), 0.1),
        lambda: torch.arange(0, 3, 0.1),
        lambda: torch.linspace(0, 1, 7),
        lambda: INTEGERS / 7,
        lambda: 1.0 / (10000 ** (torch.arange(0, 64, 2) / 64)),
        lambda: INTEGERS * 0.1,
        lambda: torch.sqrt(INTEGERS),
        lambda: torch.pow(10000, -torch.arange(0, 64, 2) / 64),
        lambda: torch.outer(INTEGERS, torch.ones(3)),
        lambda: torch.where(INTEGERS > 7, 0.1, 0.7),
        lambda: torch.nn.Linear(2, 2, dtype=torch.float64).bias.double(),
        # What says itself what it is stays so.
        lambda: torch.zeros(2, dtype=torch.float32),
        lambda: INTEGERS.float(),
        lambda: INTEGERS.to(torch.float32) / 7,
        lambda: torch.from_numpy(INTEGERS.numpy().astype("float32")),
        lambda: torch.tensor(INTEGERS.numpy().astype("float32")),
        lambda: torch.arange(7),
        lambda: torch.ones(2, dtype=torch.float64) * 0.1,
    ],
)
def test_the_same_as_with_torch_s_own_default(compute):
    before = torch.get_default_dtype()
    torch.set_default_dtype(HALF)
    try:
        torch.manual_seed(0)
        expected = compute()
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(0)
    with default_dtype(HALF):
        found = compute()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_modules_in_the_precision_that_is_asked_for_and_without_memory():
    with default_dtype(HALF), without_memory():
        layer = torch.nn.Linear(4, 4)
        norm = torch.nn.BatchNorm1d(4)
    assert layer.weight.is_meta and layer.weight.dtype == HALF
    assert not norm.running_mean.is_meta and norm.running_mean.dtype == HALF


@pytest.fixture
def other_thread():
    """Builds all the while, and notes what it got."""
    stop, seen = threading.Event(), set()

    def build() -> None:
        while not stop.wait(0.001):
            layer = torch.nn.Linear(2, 2)
            seen.add((torch.get_default_dtype(), torch.zeros(1).dtype, layer.weight.dtype, layer.weight.is_meta))

    thread = threading.Thread(target=build)
    register = torch.nn.Module.register_parameter
    thread.start()
    yield seen
    stop.set()
    thread.join()
    assert seen == {(torch.float32, torch.float32, torch.float32, False)}
    assert torch.nn.Module.register_parameter is register


@pytest.mark.parametrize("family", ["z-image", "lumina-image-2", "lumina-next"])
def test_another_thread_sees_nothing_of_a_model_that_loads(tiny_models, other_thread, family):
    engine = Engine.load(tiny_models[family], device="cpu", dtype="bfloat16")
    assert engine.components.transformer.dtype == HALF


def test_another_thread_sees_nothing_of_a_model_that_is_planned_or_streamed(tiny_models, other_thread):
    checkpoint = read_checkpoint(tiny_models["z-image"])
    skeleton(checkpoint, family_of(checkpoint), HALF)
    Engine.load(tiny_models["z-image"], device="cpu", dtype="bfloat16", placement="streamed")
