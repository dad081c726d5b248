"""Main memory that takes what is away: how much of it is locked, and what happens where nothing more can be."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest
import torch

from candela import CandelaWarning, Engine, OutOfMemory, Request
from candela.checkpoints import read_checkpoint
from candela.checkpoints.again import Files
from candela.engine import cards, placing
from candela.engine.placing import Host, Shelf
from candela.engine.skeletons import size_of

CPU = torch.device("cpu")
REQUEST = Request("a red star", width=64, height=64, steps=2)


@pytest.fixture
def engine(tiny_models) -> Engine:
    return Engine.load(tiny_models["z-image"], device="cpu", placement="resident")


@pytest.fixture
def locking(monkeypatch):
    """Memory that only claims to be locked, as it can be with a GPU alone. -> the sizes that were asked for."""
    sizes: list[int] = []
    empty = torch.empty

    def claiming(*shape, pin_memory=False, **named):
        if pin_memory:
            sizes.append(shape[0])
        return empty(*shape, **named)

    monkeypatch.setattr(placing.torch, "empty", claiming)
    return sizes


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can be locked here")
def test_memory_that_cannot_be_locked_is_no_error(engine):
    transformer = engine.components.transformer
    picture = engine.generate(REQUEST).images[0].tobytes()
    lie = {name: tensor.data_ptr() for name, tensor in transformer.named_parameters()}
    host = Host(transformer, pinned=True)
    shelf = Shelf(transformer, host, CPU)
    shelf.away()
    assert not host.pinned
    assert {name: tensor.data_ptr() for name, tensor in host._kept.items() if name in lie} == lie, "none was copied"
    shelf.streamed()
    assert engine.generate(REQUEST).images[0].tobytes() == picture
    shelf.whole()
    assert engine.generate(REQUEST).images[0].tobytes() == picture


@pytest.mark.parametrize("short_of", ["memory that may be locked", "free memory"])
def test_no_more_is_locked_than_is_good_for_the_machine(engine, monkeypatch, locking, short_of):
    transformer = engine.components.transformer
    picture = engine.generate(REQUEST).images[0].tobytes()
    half, before = size_of(transformer) // 2, Host._locked
    monkeypatch.setattr(placing, "CHUNK", 4096)
    if short_of == "free memory":
        monkeypatch.setattr(cards, "free", lambda device: placing.LEFT + half - sum(locking))
    else:
        monkeypatch.setattr(placing, "LOCKED", 0.5)
        monkeypatch.setattr(cards, "ram", lambda: 2 * (half + before))
    host = Host(transformer, pinned=True)
    shelf = Shelf(transformer, host, CPU)
    shelf.away()
    assert 0.5 * half < sum(locking) <= half
    assert Host._locked == before + sum(locking)
    shelf.streamed()
    assert engine.generate(REQUEST).images[0].tobytes() == picture
    shelf.whole()


def test_what_was_locked_counts_no_more_once_it_is_gone(engine, locking):
    gc.collect()  # hosts of other tests
    before = Host._locked
    host = Host(engine.components.transformer, pinned=True)
    host.keep("x_pad_token", engine.components.transformer.x_pad_token)
    assert Host._locked == before + sum(locking) > before
    del host
    gc.collect()
    assert Host._locked == before


def test_what_is_on_a_gpu_alone_is_left_to_the_files(engine, tiny_models):
    from torch._subclasses.fake_tensor import FakeTensorMode

    transformer = engine.components.transformer
    files = Files.of(read_checkpoint(tiny_models["z-image"]).parts["transformer"], transformer, torch.float32)
    host, name = Host(transformer, pinned=False, files=files), "layers.0.attention.to_q.weight"
    values = transformer.get_parameter(name)
    with FakeTensorMode():
        there = torch.empty(values.shape, device="cuda")
    host.keep(name, there)
    assert torch.equal(host.read([name], CPU)[name], values)
    place = torch.zeros_like(values)
    host.copy({name: place})
    assert torch.equal(place, values)


class Full(Host):
    """A machine whose main memory has no room for any layer."""

    def keep(self, name, tensor):
        if name.startswith("layers."):
            raise MemoryError
        super().keep(name, tensor)


@pytest.mark.parametrize("times", [1, 9])
def test_a_step_down_without_room_for_the_weights_ends_as_memory_that_ran_out(engine, monkeypatch, times):
    picture = engine.generate(REQUEST).images[0].tobytes()
    placed = engine.residency
    placed.shelves = {
        name: Shelf(module, Full(module, pinned=False), CPU)
        for name, module in engine.components.modules.items()
        if name != "vae"
    }
    predictor, left = engine.family.predictor, [None] * times

    def failing(*arguments):
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return predictor(*arguments)

    monkeypatch.setattr(engine.family, "predictor", failing)
    ends = pytest.raises(OutOfMemory, match=r"\(In denoise; .* was streamed") if times > 1 else nullcontext()
    with pytest.warns(CandelaWarning, match="20.00 MiB more could not be had"), ends:
        assert engine.generate(REQUEST).images[0].tobytes() == picture
    left.clear()
    assert engine.generate(REQUEST).images[0].tobytes() == picture
