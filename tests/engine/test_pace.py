"""Steps on a device that works while Python runs ahead: how many are queued, what they took, when a stop is seen."""

from __future__ import annotations

import pytest
import torch

from candela import Cancelled, Engine, Request
from candela.engine import pace, sampling, whole
from candela.engine.skeletons import blocks_of
from tests import tiny_pipelines
from tests.conftest import STAR, pixels

STEP = 2.0  # seconds that every step takes on the device


class Device:
    """torch.cuda as far as events go: work is done in its order, in seconds that no clock counts, and no sooner than
    somebody waits for it. Python itself takes no time."""

    def __init__(self):
        self.asked: list[object] = []  # steps as seconds, and events
        self.worked = 0  # of what was asked
        self.now = 0.0
        self.dry = 0  # times that it had nothing to do when a step was asked for

    def launch(self, *_) -> None:
        self.dry += STEP not in self.asked[self.worked :]
        self.asked.append(STEP)

    def current_stream(self, device: torch.device):
        return f"the stream of {device}"

    def Event(self, enable_timing: bool):
        assert enable_timing
        return Event(self)

    def count(self, worked: int | None = None) -> int:
        """Steps that were asked for, or of the first `worked` things."""
        return self.asked[:worked].count(STEP)


class Event:
    def __init__(self, device: Device):
        self.device, self.at = device, None

    def record(self, stream: str | None = None) -> None:
        assert stream == "the stream of cuda:1", "another device's"
        self.device.asked.append(self)

    def synchronize(self) -> None:
        device, wanted = self.device, self.device.asked.index(self) + 1
        for asked in device.asked[device.worked : wanted]:
            if isinstance(asked, Event):
                asked.at = device.now
            else:
                device.now += asked
        device.worked = max(device.worked, wanted)

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None, "not ready, as torch says"
        return (end.at - self.at) * 1000


@pytest.fixture(scope="module")
def sana(tmp_path_factory):
    """A pipeline that runs whole."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pace") / "sana"
    tiny_pipelines.sana().save_pretrained(folder)
    return Engine.load(folder, device="cpu", dtype="float32")


@pytest.fixture(params=["own loop", "the pipeline's"])
def engine(request, demo):
    return demo if request.param == "own loop" else request.getfixturevalue("sana")


def request_for(engine: Engine) -> Request:
    return STAR if engine.model == "demo" else Request("a star", steps=8, width=64, height=64, guidance=1.0)


@pytest.fixture
def device(engine, monkeypatch):
    """The engine's, as far as its steps know."""
    found, kind = Device(), pace.Pace
    monkeypatch.setattr(torch, "get_device_module", lambda device: found)
    for module in (sampling, whole):
        monkeypatch.setattr(module, "Pace", lambda device: kind(torch.device("cuda:1")))
    handle = blocks_of(engine.components.transformer)[-1].register_forward_pre_hook(found.launch)
    yield found
    handle.remove()


def test_one_step_is_queued_behind_the_one_at_work(engine, device):
    seen = []
    engine.generate(
        request_for(engine),
        on_step=lambda step: seen.append((step.index, step.seconds, device.count(), device.count(device.worked))),
    )
    launched = [*range(2, 9), 8]  # when a step is told of, the next one is at work
    assert seen == [(k + 1, STEP, launched[k], k + 1) for k in range(8)]
    assert device.dry == 1, "the device waited for Python"


def test_a_stop_is_seen_within_a_step(engine, device):
    told = []
    with pytest.raises(Cancelled) as stopped:
        engine.generate(request_for(engine), on_step=told.append, cancelled=lambda: len(told) == 3)
    assert (stopped.value.step, stopped.value.steps) == (3, 8)
    assert device.count() == 4 and device.count(device.worked) == 3


def test_who_raises_in_the_callback_stops_as_soon(engine, device):
    def stop(step) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(request_for(engine), on_step=stop)
    assert device.count() == 3


def test_on_the_cpu_a_step_is_told_of_before_the_next_begins(engine):
    launched, seen = [], []
    handle = blocks_of(engine.components.transformer)[-1].register_forward_pre_hook(lambda *_: launched.append(1))
    try:
        engine.generate(request_for(engine), on_step=lambda step: seen.append((step.index, len(launched))))
    finally:
        handle.remove()
    assert seen == [(k, k) for k in range(1, 9)]


def test_the_picture_is_the_same(demo, star_pixels, monkeypatch):
    found, kind = Device(), pace.Pace
    monkeypatch.setattr(torch, "get_device_module", lambda device: found)
    monkeypatch.setattr(sampling, "Pace", lambda device: kind(torch.device("cuda:1")))
    latents = []
    result = demo.generate(STAR, on_step=lambda step: latents.append(step.denoised))
    assert pixels(result.images[0]) == star_pixels
    plain = []
    monkeypatch.undo()
    demo.generate(STAR, on_step=lambda step: plain.append(step.denoised))
    assert all(map(torch.equal, latents, plain))
