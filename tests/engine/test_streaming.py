"""Blocks that come while others compute, and those that stay: the same picture, and no more is there than is said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from candela import Engine, Request
from candela.engine.ladder import Placement, Rung
from candela.engine.placing import Host, Shelf
from candela.engine.skeletons import blocks_of
from candela.engine.streaming import Ahead
from tests import tiny

CPU = torch.device("cpu")
REQUESTS = [Request(prompt, width=64, height=64, steps=3) for prompt in ("a red star", "a blue circle", "a red star")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With more blocks than the tiny models of other tests have."""
    folder = tmp_path_factory.mktemp("streaming") / "model"
    return tiny.z_image(folder, layers=5)


@pytest.fixture(scope="module")
def pictures(model):
    engine = Engine.load(model, device="cpu", placement="resident")
    return [engine.generate(request).images[0].tobytes() for request in REQUESTS]


def there(block: torch.nn.Module) -> bool:
    return not any(parameter.isnan().any() for parameter in block.parameters())


def watched(transformer: torch.nn.Module) -> list[set[int]]:
    """Which blocks are there, at the end of each one that is called."""
    seen: list[set[int]] = []
    blocks = blocks_of(transformer)

    def look(*_) -> None:
        seen.append({number for number, block in enumerate(blocks) if there(block)})

    for block in blocks:
        block.register_forward_hook(look)
    return seen


@pytest.mark.parametrize("kept", [0, 1, 4, 6, 7])
def test_from_files_one_is_there_beside_those_that_stay(model, pictures, kept):
    engine = Engine.load(model, device="cpu", placement="streamed")
    engine.residency.rung = Rung(Placement.STREAMED, kept=kept)
    seen = watched(engine.components.transformer)
    assert [engine.generate(request).images[0].tobytes() for request in REQUESTS] == pictures
    assert max(map(len, seen)) == min(kept + 1, 7)
    # The last request's prompt was known, so they were there all the time; a single one that comes has no need to go.
    assert len(set.intersection(*seen[-14:])) == (7 if kept == 6 else kept)


@pytest.mark.parametrize("kept", [0, 1, 4, 6, 7])
def test_from_main_memory_two_are(model, pictures, kept):
    engine = Engine.load(model, device="cpu", placement="resident")
    transformer = engine.components.transformer
    shelf = Shelf(transformer, Host(transformer, pinned=False), CPU)
    seen = watched(transformer)
    for request, picture in zip(REQUESTS, pictures):
        shelf.away()
        shelf.streamed(kept)
        assert engine.generate(request).images[0].tobytes() == picture
    assert max(map(len, seen)) == min(kept + 2, 7)
    assert len(set.intersection(*seen[-14:])) >= kept
    shelf.whole()
    assert all(map(there, blocks_of(transformer)))
    assert engine.generate(REQUESTS[0]).images[0].tobytes() == pictures[0]


def test_those_that_stay_lie_evenly_between_those_that_come(model):
    engine = Engine.load(model, device="cpu", placement="streamed")
    engine.residency.rung = Rung(Placement.STREAMED, kept=4)
    seen = watched(engine.components.transformer)
    engine.generate(REQUESTS[0])
    assert set.intersection(*seen[-7:]) == {1, 3, 5, 6}


class Queues:
    """torch.cuda as far as order goes: what each stream has waited for is known, and every use of memory is held
    against the uses before it that it must come after (Lamport, "Time, Clocks, and the Ordering of Events", 1978).

    Copies are carried out as late as their stream's order allows, when another stream waits for them."""

    def __init__(self):
        self.computing, self.copying = Queue(self, "computing"), None
        self.now = self.computing
        self.written: dict[int, dict[str, int]] = {}  # storage -> when it was written last, by stream
        self.read: dict[int, dict[str, int]] = {}
        self.races: list[str] = []
        self.beside = 0  # blocks that computed while a copy was under way

    def Stream(self, device):
        self.copying = Queue(self, "copying")
        return self.copying

    def current_stream(self, device):
        return self.now

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def reads(self, tensors) -> None:
        self._uses(tensors, self.read, (self.written,), "read before it was copied")
        self.beside += self.copying.done < len(self.copying.asked)

    def writes(self, tensors) -> None:
        self._uses(tensors, self.written, (self.written, self.read), "overwritten while it is used")

    def _uses(self, tensors, uses, others, race) -> None:
        self.now.clock[self.now.name] += 1
        for number in {tensor.untyped_storage().data_ptr() for tensor in tensors}:
            for other in others:
                if any(self.now.clock.get(name, 0) < at for name, at in other.get(number, {}).items()):
                    self.races.append(race)
            uses.setdefault(number, {})[self.now.name] = self.now.clock[self.now.name]


class Queue:
    """One stream: `clock` says how much of each stream comes before what is asked of this one next."""

    def __init__(self, queues: Queues, name: str):
        self.queues, self.name, self.clock = queues, name, {name: 0}
        self.asked: list[Callable[[], None]] = []  # copies, the first `done` of them carried out
        self.done = 0

    def record_event(self):
        return SimpleNamespace(stream=self, clock=dict(self.clock), asked=len(self.asked))

    def wait_event(self, event) -> None:
        for name, at in event.clock.items():
            self.clock[name] = max(self.clock.get(name, 0), at)
        for copy in event.stream.asked[event.stream.done : event.asked]:
            copy()
        event.stream.done = max(event.stream.done, event.asked)

    def wait_stream(self, stream) -> None:
        self.wait_event(stream.record_event())


@pytest.fixture
def queued(model, monkeypatch):
    """An engine whose transformer is streamed on a device with queues; -> engine, shelf, queues."""
    queues = Queues()
    monkeypatch.setattr(torch, "get_device_module", lambda device: queues)
    engine = Engine.load(model, device="cpu", placement="resident")
    transformer = engine.components.transformer
    host = Host(transformer, pinned=False)
    shelf = Shelf(transformer, host, CPU)
    shelf.away()
    copy = host.copy

    def later(places) -> None:
        queues.writes(places.values())
        queues.now.asked.append(lambda: copy(places))

    monkeypatch.setattr(host, "copy", later)
    return engine, shelf, queues


def watch(shelf: Shelf, queues: Queues) -> None:
    """From now on every block that computes is seen to read its memory."""
    for block in blocks_of(shelf.module):
        block.register_forward_pre_hook(lambda block, arguments: queues.reads(block.parameters()))


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_copies_and_arithmetic_wait_for_each_other_where_they_share_memory_and_nowhere_else(queued, pictures, kept):
    engine, shelf, queues = queued
    shelf.streamed(kept)
    watch(shelf, queues)
    assert [engine.generate(request).images[0].tobytes() for request in REQUESTS] == pictures
    assert queues.races == []
    assert queues.copying is not queues.computing and queues.copying.clock["copying"] >= (12 if kept < 6 else 7)
    assert queues.beside > 0, "no copy was under way while a block computed"


@pytest.mark.parametrize("after", ["whole", "away"])
def test_a_copy_under_way_is_waited_for_when_streaming_ends(queued, pictures, after):
    """Stopped after the second block, whose follower is on its way."""
    engine, shelf, queues = queued
    shelf.streamed()
    transformer = blocks_of(shelf.module)
    for number in (0, 1):
        shelf._turn.come(number)
    assert queues.copying.done == 2 < len(queues.copying.asked)
    memory = [slot.memory for slot in shelf._turn.slots]
    getattr(shelf, after)()
    if after == "whole":
        watch(shelf, queues)
        assert engine.generate(REQUESTS[0]).images[0].tobytes() == pictures[0]
    else:
        assert not any(map(there, transformer))
        queues.writes(memory)  # as whoever gets it next will
    assert queues.races == []


def test_memory_that_is_copied_to_is_not_given_to_others_before_the_copy_is_done(model, monkeypatch):
    """An engine may be gone while a copy is under way. torch's allocator gives memory on at once to whoever computes on
    the stream that it was taken on, unless it knows of the other stream (Tensor.record_stream)."""
    queues, known = Queues(), []
    monkeypatch.setattr(torch, "get_device_module", lambda device: queues)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: known.append((tensor.numel(), stream)))
    monkeypatch.setattr(Ahead, "_views", lambda turn, memory, number: {})  # which takes a build of torch with CUDA
    transformer = Engine.load(model, device="cpu", placement="resident").components.transformer
    shelf = Shelf(transformer, Host(transformer, pinned=False), CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        shelf.device = torch.device("cuda")
        turn = Ahead(shelf, shelf.source, 7, staying={1})
        slots = [turn.slots[0].memory.numel()] * 2
        assert known == [(size, turn.copying) for size in slots]
        turn._memory(512)
    assert known[2:] == [(512, turn.copying)]
