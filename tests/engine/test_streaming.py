"""Blocks that come while others compute, and those that stay: the same picture, and no more is there than is said."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from candela import Engine, Request
from candela.engine.ladder import Placement, Rung
from candela.engine.placing import Host, Shelf
from candela.engine.skeletons import blocks_of
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


class Late:
    """torch.cuda as far as it matters here: arithmetic is done at once, a copy when the arithmetic waits for it."""

    def __init__(self):
        self.asked = []

    def Stream(self, device):
        return SimpleNamespace(wait_event=lambda event: None, record_event=lambda: list(self.asked))

    def current_stream(self, device):
        return SimpleNamespace(
            wait_event=self._wait, wait_stream=lambda stream: self._wait(list(self.asked)), record_event=lambda: None
        )

    def stream(self, stream):
        return nullcontext()

    def _wait(self, copies):
        for copy in copies:
            if copy in self.asked:
                self.asked.remove(copy)
                copy()


def test_nothing_computes_with_a_block_whose_copy_was_not_waited_for(model, pictures, monkeypatch):
    streams = Late()
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    engine = Engine.load(model, device="cpu", placement="resident")
    transformer = engine.components.transformer
    host = Host(transformer, pinned=False)
    shelf = Shelf(transformer, host, CPU)
    shelf.away()
    copy = host.copy
    monkeypatch.setattr(host, "copy", lambda places: streams.asked.append(lambda: copy(places)))
    shelf.streamed(2)
    early = []
    for block in blocks_of(transformer):
        block.register_forward_hook(lambda *_: early.append(len(streams.asked)))
    assert [engine.generate(request).images[0].tobytes() for request in REQUESTS] == pictures
    assert 1 in early  # copies really were under way while blocks computed
