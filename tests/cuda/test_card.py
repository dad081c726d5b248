"""What only a card can show."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from candela import Cancelled, CandelaWarning, Engine, InvalidRequest, Lora, Request
from candela.bench.suites import capped
from candela.checkpoints import read_checkpoint
from candela.demo import check
from candela.engine import planning
from candela.engine.cards import Machine
from candela.engine.fast import can_compile, compile_blocks
from candela.engine.ladder import Placement, Rung
from candela.engine.measuring import PROMPT
from candela.families import family_of
from tests import loras
from tests.conftest import STAR

ROUNDING = 2  # of 255: convolutions of a card may round to TF32, torch's default
RUNGS = [
    Rung(Placement.RESIDENT),
    Rung(Placement.RELEASED),
    Rung(Placement.STREAMED),
    Rung(Placement.STREAMED, kept=2),
    Rung(Placement.STREAMED, kept=4),
]


def load(model: str | Path, device: torch.device, dtype: str = "float32", **options) -> Engine:
    return Engine.load(model, device=str(device), dtype=dtype, **options)


def sized(device: torch.device, prompt: str = "a red star", **options) -> Request:
    side = 512 if device.type == "cuda" else 64
    return Request(prompt, width=side, height=side, **{"steps": 4, "guidance": 0.0} | options)


def picture(engine: Engine, request: Request) -> np.ndarray:
    return np.asarray(engine.generate(request).images[0], dtype=int)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("family", ["z-image", "lumina-image-2", "lumina-next"])
def test_the_picture_is_the_cpu_s(tiny_models, device, figure, family, guidance):
    request = Request("a red star", width=128, height=96, steps=4, guidance=guidance, seed=3)
    pictures = [picture(load(tiny_models[family], place), request) for place in (device, torch.device("cpu"))]
    figure("apart", apart(*pictures))
    assert apart(*pictures) <= ROUNDING


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_draws_what_it_is_asked(demo, device, figure, dtype):
    drawn = load("demo", device, dtype).generate(STAR).images[0]
    figure("apart", apart(np.asarray(drawn, dtype=int), picture(demo, STAR)))
    assert check(drawn, STAR.prompts[0]).ok


def test_every_offload_level_gives_the_same_picture_bit_for_bit(model, device):
    """Twice each, with another prompt between: blocks come ahead, and go for the text encoder."""
    first, second = sized(device), sized(device, "a blue circle")
    resident = load(model, device, "bfloat16", placement="resident")
    expected = [picture(resident, first), picture(resident, second)]
    for rung in RUNGS[1:]:
        engine = load(model, device, "bfloat16", placement=rung.placement.value)
        engine.residency.rung = rung
        for _ in range(2):
            assert apart(picture(engine, first), expected[0]) == 0, rung
            assert apart(picture(engine, second), expected[1]) == 0, rung


def test_blocks_that_come_ahead_are_whole_when_they_are_used(model, device):
    """Many steps in a row: a copy that nobody waited for shows as another picture, now and then."""
    request = sized(device, steps=20)
    expected = picture(load(model, device, "bfloat16", placement="resident"), request)
    engine = load(model, device, "bfloat16", placement="streamed")
    for _ in range(5 if device.type == "cuda" else 1):
        assert apart(picture(engine, request), expected) == 0


def test_where_memory_runs_out_it_goes_one_rung_down(model, device, figure):
    engine, request = load(model, device, "bfloat16", placement="resident"), sized(device)
    expected = picture(engine, request)
    with warnings.catch_warnings(record=True) as told, capped(device, allocated(device) + 20_000_000):
        warnings.simplefilter("always")
        drawn = picture(engine, request)
    down = [str(one.message) for one in told if issubclass(one.category, CandelaWarning)]
    figure("went to", str(engine.residency.rung))
    if device.type == "cuda":
        assert down and "One step down" in down[0] and engine.residency.rung != Rung()
    assert engine.residency.rung.tiled or apart(drawn, expected) == 0
    assert picture(engine, request).shape == expected.shape  # it stays usable


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def test_compiled_blocks_draw_the_same(model, device, figure):
    if device.type == "cuda" and not can_compile(device):
        pytest.skip("NOT COMPILED: Triton or a C compiler is missing")
    engine, request = load(model, device, "bfloat16"), sized(device)
    expected = picture(engine, request)
    compile_blocks(engine.components.transformer, "inductor" if device.type == "cuda" else "eager")
    figure("apart", apart(picture(engine, request), expected))
    assert np.abs(picture(engine, request) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_fast_mode_draws_what_it_is_asked(device, figure, kind):
    try:
        engine = load("demo", device, "bfloat16", fast=kind)
    except InvalidRequest as error:
        pytest.skip(f"NOT ON THIS CARD: {error}")
    drawn = engine.generate(STAR).images[0]
    exact = picture(load("demo", device, "bfloat16"), STAR)
    figure("apart on average", round(float(np.abs(np.asarray(drawn, dtype=int) - exact).mean()), 2))
    assert check(drawn, STAR.prompts[0]).ok


@pytest.mark.parametrize(
    "label",
    ["transformer.*.lora_A/B (peft)", "DoRA, transformer.*.lora_magnitude_vector", "LoKr, lycoris_*, fused qkv"],
)
@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_loras_on_and_off(tiny_models, tmp_path, device, figure, placement, label):
    request = Request("a red star", width=64, height=64, steps=2, guidance=0.0)
    here, cpu = (load(tiny_models["z-image"], place, placement=placement) for place in (device, torch.device("cpu")))
    loras.write(
        tmp_path / "lora.safetensors", loras.FORMATS[label],
        load(tiny_models["z-image"], torch.device("cpu")).components.transformer,
    )  # fmt: skip
    bare = picture(here, request)
    for engine in (here, cpu):
        engine.set_loras([Lora(tmp_path / "lora.safetensors", 1.0)])
    changed = picture(here, request)
    figure("apart from the CPU's", apart(changed, picture(cpu, request)))
    assert apart(changed, bare) > 5 and apart(changed, picture(cpu, request)) <= ROUNDING
    here.set_loras([])
    assert apart(picture(here, request), bare) == 0


@pytest.mark.parametrize("rung", RUNGS[:3], ids=str)
def test_the_peak_is_as_planned(model, device, figure, rung):
    """Within 10 %, beside what cuBLAS keeps from its first product on."""
    side = 1024 if device.type == "cuda" else 64
    checkpoint = read_checkpoint(model)
    known = planning.measured(checkpoint, family_of(checkpoint), torch.bfloat16, "cuda", (side, side))
    stages = known.stages(rung, Machine("", "cuda", 0, 0, 1.0, 1.0, 1.0))
    planned = max(stage.peak for stage in stages)
    before = 0
    if device.type == "cuda":
        square = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
        square @ square
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device) - square.nbytes
    engine = load(model, device, "bfloat16", placement=rung.placement.value)
    engine.residency.rung = rung
    peak = engine.generate(Request(PROMPT, width=side, height=side, steps=2, guidance=0.0)).peak_bytes - before
    figure("planned MB", round(planned / 1e6))
    figure("measured MB", round(peak / 1e6))
    if device.type == "cuda":
        assert peak == pytest.approx(planned, rel=0.1)
    assert planned > stages[1].weights > 0


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_seconds_of_steps(model, device, figure, placement):
    """By the device's own clock, beside what the engine says."""
    engine, request = load(model, device, "bfloat16", placement=placement), sized(device, steps=8)
    engine.generate(request)
    told, marks = [], []

    def on_step(step) -> None:
        told.append(step.seconds)
        if device.type == "cuda":
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()

    engine.generate(request, on_step=on_step)
    assert len(told) == 8 and all(seconds > 0 for seconds in told)
    if marks:
        marks[-1].synchronize()
        figure("ms a step by events", round(marks[0].elapsed_time(marks[-1]) / 7, 2))
    figure("ms a step as told", round(1000 * sum(told[1:]) / 7, 2))


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_a_stop_comes_within_a_step(model, device, placement):
    engine, request = load(model, device, "bfloat16", placement=placement), sized(device, steps=8)
    expected, seen = picture(engine, request), []
    with pytest.raises(Cancelled) as caught:
        engine.generate(request, on_step=seen.append, cancelled=lambda: len(seen) >= 3)
    assert len(seen) == caught.value.step == 3
    assert apart(picture(engine, request), expected) == 0
