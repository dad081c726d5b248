"""The plan against what is published, what is measured, and the document."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import memory_tables
from candela import Engine, InvalidRequest, ModelNotFound
from candela.checkpoints import read_checkpoint
from candela.checkpoints.announced import MODELS, announced
from candela.checkpoints.card_memory import RESERVED, WORK
from candela.checkpoints.published import PUBLICATIONS
from candela.engine import planning
from candela.engine.cards import Machine, card, of_memory
from candela.engine.ladder import Placement, Rung
from candela.engine.planning import pick_rung, plan
from candela.engine.skeletons import size_of, without_weights
from candela.families import family_of
from candela.install import card as install_card
from tests.conftest import STAR, pixels

GIB = 2**30


@pytest.mark.parametrize("name", MODELS)
def test_announced_models_are_as_large_as_the_published_files(name):
    """Each file's header beside its tensors is well under a megabyte; Gemma's has its tokenizer too."""
    parts = announced(name).parts
    for file in PUBLICATIONS[name].split["bf16"]:
        dtype = torch.float32 if file.component == "vae" else torch.bfloat16
        size = size_of(without_weights(parts[file.component], file.component, dtype))
        assert 0 <= file.bytes - size < (5_000_000 if "gemma" in file.name else 200_000), file.path


def test_the_document_and_install_say_what_the_planner_says():
    for file in (memory_tables.DOCUMENT, memory_tables.NEEDED):
        assert memory_tables.renewed(file.read_text()) == file.read_text(), "run: python -m benchmarks.memory_tables"
    for model in MODELS:
        offers = PUBLICATIONS[model].split
        known = {precision: memory_tables.of(model, precision) for precision in offers}
        for gib in (6, 8, 10, 12, 16, 24, 32, 80):
            machine = of_memory(gib * GIB)
            resident = [name for name, one in known.items() if one.best(machine)[0].placement is Placement.RESIDENT]
            found = install_card.Card("", gib * GIB, gib * GIB, "", "")
            expected = resident[0] if resident else [*offers][-1]
            assert install_card.pick_precision(model, offers, found, managed=False)[0] == expected, (model, gib)
        for one in known.values():  # what is never counted, because it is enough
            pixels = 2 * one.defaults.width * one.defaults.height
            assert one.costs.step.peak_bytes < WORK["transformer"] * pixels
            assert max(one.costs.decode.peak_bytes, one.costs.encode.peak_bytes) < WORK["vae"] * pixels


def test_seconds_are_near_published_ones():
    """A step takes 0.893 s on a 3090 Ti (ComfyUI); on an H100 0.084 s with SGLang's fused kernels, which are not
    counted on here, so it must be more than that, and not twice as much."""
    known = memory_tables.of("z-image-turbo", "bf16")
    assert known.costs.step.flops == pytest.approx(58.6e12, rel=0.06)
    slower, faster = (
        known.costs.step.seconds(machine.flops, machine.bandwidth)
        for machine in (card("RTX 3090 Ti 24 GB"), card("H100 80 GB"))
    )
    assert slower == pytest.approx(0.893, rel=0.25)
    assert 0.084 < faster < 0.168
    smaller = Machine("", "cuda", 13 * GIB, 32 * GIB, 1e14, 1e12, 2e10)
    assert known.best(smaller)[0] == Rung(Placement.RELEASED, tiled=True)
    for gib, placement in ((8, "streamed"), (16, "released"), (24, "resident")):
        assert known.best(card(memory_tables.SIZED[gib]))[0].placement.value == placement


def test_a_card_is_filled_with_blocks_that_stay():
    known, twelve = memory_tables.of("z-image-turbo", "bf16"), card(memory_tables.SIZED[12])
    rung, fits = known.best(twelve)
    assert fits and rung.placement is Placement.STREAMED and 0 < rung.kept < known.weights["transformer"].blocks == 34
    stages, bare = known.stages(rung, twelve), known.stages(Rung(Placement.STREAMED), twelve)
    block = known.weights["transformer"].block
    assert stages[0] == bare[0] and stages[1].weights == bare[1].weights + rung.kept * block == stages[2].weights
    largest = max(stage.activations for stage in stages)
    assert max(s.peak for s in stages) + largest + RESERVED <= twelve.memory
    assert max(s.peak for s in stages) + largest + RESERVED > twelve.memory - block
    slow = replace(twelve, link=twelve.link / 10)
    assert known.seconds(rung, slow) < 0.75 * known.seconds(Rung(Placement.STREAMED), slow)
    assert known.seconds(rung, twelve) <= known.seconds(Rung(Placement.STREAMED), twelve)


def test_a_dry_run_leaves_nothing_behind(demo, star_pixels):
    plan("demo", vram=8 * GIB)
    assert pixels(demo.generate(STAR).images[0]) == star_pixels


def test_what_a_plan_says(tiny_models):
    made = plan("demo", vram=8 * GIB, ram=16 * GIB, size=(192, 128))
    assert made.installed and made.fits and made.placement == "resident" and not made.tiled
    assert (made.width, made.height, made.steps) == (192, 128, 8)
    weights = sum(component.bytes for component in made.components)
    assert made.peak_bytes > weights == made.stages[0].weights
    assert made.peak_bytes == max(stage.weights + stage.activations for stage in made.stages)
    forced = plan("demo", vram=8 * GIB, placement="streamed")
    assert forced.peak_bytes < weights
    assert forced.options[0].placement.startswith("released") and forced.options[0].what == "with 8 GB"
    assert not plan("demo", device="cpu", ram=GIB // 2).fits
    with pytest.raises(InvalidRequest, match="not a multiple of 16"):
        plan("demo", size=(100, 128))
    with pytest.raises(InvalidRequest, match="use resident, released, streamed"):
        plan("demo", placement="somewhere")
    with pytest.raises(ModelNotFound, match="candela install lumina-next-sft"):
        plan("lumina-next-sft", vram=8 * GIB)


class Devices(TorchDispatchMode):
    """Where every operation's results are."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {one.device for one in tree_leaves(result) if isinstance(one, torch.Tensor)}
        return result


@pytest.mark.parametrize("may_lock", [True, False])
def test_the_card_that_was_asked_for_is_measured_and_its_link(monkeypatch, may_lock):
    second, gpu, cpu, asked = torch.device("cuda:1"), torch.cuda, torch.device("cpu"), []
    properties = SimpleNamespace(name="the second card")
    monkeypatch.setattr(gpu, "get_device_properties", lambda device: asked.append(device) or properties)
    monkeypatch.setattr(gpu, "mem_get_info", lambda device: asked.append(device) or (1, 8 * GIB))
    monkeypatch.setattr(gpu, "synchronize", asked.append)
    empty, pinned = torch.empty, []

    def unpinned(*size, pin_memory=False, **named):  # only a machine with a card can lock memory
        pinned.append(pin_memory)
        if pin_memory and not may_lock:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **named)

    monkeypatch.setattr(torch, "empty", unpinned)
    copies = set()  # which the build without CUDA has not, nor for tensors without values
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, by, **named: copies.add((by.device, to.device)))
    with FakeTensorMode(), Devices() as devices:
        machine = planning.cards.this_machine(second, torch.bfloat16)
    assert machine.name == "the second card" and machine.memory == 8 * GIB and machine.link_measured
    assert devices.seen == {second, cpu} and set(asked) == {second}
    assert copies == {(second, second), (cpu, second)} and any(pinned)
    planning.cards.rates.cache_clear()
    planning.cards.link.cache_clear()


def test_an_engine_begins_where_there_is_room(tiny_models, monkeypatch):
    """Free memory is the one thing set here: no machine of a test has so little."""
    checkpoint = read_checkpoint("demo")
    family, cpu = family_of(checkpoint), torch.device("cpu")
    whole = planning.loaded_bytes(checkpoint, torch.float32)
    found = {}
    for share in (10, 1.5, 1.25, 0.6):
        monkeypatch.setattr(planning.cards, "free", lambda device, share=share: int(whole * share))
        found[share] = pick_rung(checkpoint, family, cpu, torch.float32, None).placement.value
    assert found == {10: "resident", 1.5: "resident", 1.25: "released", 0.6: "streamed"}
    assert pick_rung(checkpoint, family, cpu, torch.float32, "released") == Rung(Placement.RELEASED)
    with pytest.raises(InvalidRequest, match="no placement 'x'"):
        Engine.load("demo", placement="x", device="cpu")
