"""The engine's own code on a card that is not there (`tests/fake_cuda.py`): nothing mixes devices or precisions, and
the denoising loop never waits for the device."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from candela import Engine, Lora, Request
from candela.checkpoints import read_checkpoint
from candela.checkpoints.loading import load_component
from candela.engine.ladder import Placement, Rung
from candela.families.layers import library_forward, replace_forward
from tests import loras
from tests.fake_cuda import CARD, Watch, fake_card, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

FAMILIES = ["z-image", "lumina-image-2", "lumina-next"]
RUNGS = [
    Rung(Placement.RESIDENT),
    Rung(Placement.RELEASED),
    Rung(Placement.STREAMED, kept=1),
    Rung(Placement.STREAMED),
]
LORAS = [
    "transformer.*.lora_A/B (peft)",
    "DoRA, transformer.*.lora_magnitude_vector",
    "diffusion_model.*, fused qkv, down/up, alpha",
    "LoKr, lycoris_*, factored, split qkv",
]
SMALL = Request("a red star", negative_prompt="blue, and much longer", width=64, height=64, steps=1, guidance=3.0)


@pytest.fixture(scope="module")
def lora_files(tiny_models, tmp_path_factory) -> dict[str, list[Lora]]:
    """By family, one of each kind."""
    folder, found = tmp_path_factory.mktemp("loras"), {}
    for family, model in tiny_models.items():
        part = read_checkpoint(model).parts["transformer"]
        transformer = load_component(part, "transformer", device=torch.device("cpu"), dtype=torch.float32)
        found[family] = []
        for number, label in enumerate(LORAS):
            if family == "lumina-next" and "fused" in label:  # its queries, keys and values are apart in every program
                continue
            path = folder / f"{family}-{number}.safetensors"
            loras.write(path, loras.FORMATS[label], transformer)
            found[family].append(Lora(path, 0.7))
    return found


def load(model: Path, dtype: str, mode: str, placement: str = "resident") -> Engine:
    """Within `fake_card`."""
    fast = mode if mode != "exact" else False
    return Engine.load(model, device=str(CARD), dtype=dtype, placement=placement, fast=fast)


def draw(engine: Engine, request: Request) -> torch.Tensor:
    negatives = engine._negatives(engine.check(request))
    pixels = engine.decode_pixels(engine.denoise(request, engine.encode(request.prompts, negatives)))
    assert pixels.device == CARD and pixels.shape == (request.total, 3, request.height, request.width)
    return pixels


ARITHMETIC = list(itertools.product(["bfloat16", "float16"], ["exact", "int8", "fp8"]))
EXTRAS = list(itertools.product([False, True], [0.0, 3.0]))  # LoRAs of all kinds at once, guidance


def check(
    model: Path, dtype: str, mode: str, applied: list[Lora], cases: list[tuple[Rung, tuple[bool, float]]]
) -> None:
    if mode != "exact":  # the 8-bit weights, which are made of values, are kept for the next
        Engine.load(model, device="cpu", dtype=dtype, fast=mode)
    with fake_card():
        engine = load(model, dtype, mode)
        for rung, (with_loras, guidance) in cases:
            engine.residency.rung = rung
            with Watch(engine) as watch:
                engine.set_loras(applied if with_loras else [])
                draw(engine, dataclasses.replace(SMALL, guidance=guidance))
            assert not watch.found, (str(rung), with_loras, guidance, watch.found)
            assert watch.operations > 200


@pytest.mark.parametrize(("dtype", "mode"), ARITHMETIC)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_mixed_and_nothing_waits(tiny_models, lora_files, family, dtype, mode):
    """Each rung of the ladder, each time with other extras: over the six, every rung meets each of them."""
    turn = ARITHMETIC.index((dtype, mode))
    cases = [(rung, EXTRAS[(number + turn) % len(EXTRAS)]) for number, rung in enumerate(RUNGS)]
    check(tiny_models[family], dtype, mode, lora_files[family], cases)


@pytest.mark.soak
@pytest.mark.parametrize(("dtype", "mode"), ARITHMETIC)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_product(tiny_models, lora_files, family, dtype, mode):
    check(tiny_models[family], dtype, mode, lora_files[family], list(itertools.product(RUNGS, EXTRAS)))


@pytest.mark.parametrize("placement", ["released", "streamed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_engines_that_begin_with_weights_away(tiny_models, lora_files, family, placement):
    with fake_card():
        engine = load(tiny_models[family], "bfloat16", "exact", placement)
        with Watch(engine) as watch:
            engine.set_loras(lora_files[family])
            draw(engine, dataclasses.replace(SMALL, steps=2))
        assert not watch.found


@pytest.mark.parametrize("family", FAMILIES)
def test_several_prompts_of_different_lengths_from_a_start_with_a_mask(tiny_models, family):
    with fake_card():
        engine = load(tiny_models[family], "bfloat16", "exact")
        start = torch.zeros(1, engine.latent_channels, 8, 8)
        request = Request(
            ["a", "a much longer prompt"], width=64, height=64, steps=2, guidance=3.0, count=2,
            latents=start, mask=torch.ones(1, 1, 8, 8), strength=0.9,
        )  # fmt: skip
        with Watch(engine) as watch:
            draw(engine, request)
        assert not watch.found


# --- what it is for: mistakes that a CPU forgives, each in one block of the transformer ------------


def copied_to_main_memory(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().to(x.device)


def made_in_main_memory(x: torch.Tensor) -> torch.Tensor:
    return x + torch.tensor([0.5], dtype=x.dtype).to(x.device)


def scaled_by_its_value(x: torch.Tensor) -> torch.Tensor:
    return x * x.abs().max().item()


def chosen_by_its_value(x: torch.Tensor) -> torch.Tensor:
    return x if x.isfinite().all() else x * 0


def scaled_in_float32(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.full((x.shape[-1],), 0.5, device=x.device)).to(x.dtype)


def left_in_float32(x: torch.Tensor) -> torch.Tensor:
    return x.float()


def multiplied_in_float32(x: torch.Tensor) -> torch.Tensor:
    return (x.float() @ torch.eye(x.shape[-1], device=x.device)).to(x.dtype)


def with_a_constant_left_behind(x: torch.Tensor) -> torch.Tensor:
    return x * torch.ones(x.shape[-1], dtype=x.dtype)


MISTAKES = {
    copied_to_main_memory: ("host", None),
    made_in_main_memory: ("host", None),
    scaled_by_its_value: ("host", DataDependentOutputException),
    chosen_by_its_value: ("host", DataDependentOutputException),
    scaled_in_float32: ("precisions", None),
    left_in_float32: ("block", None),
    multiplied_in_float32: ("product", None),
    with_a_constant_left_behind: ("devices", RuntimeError),  # which FakeTensorDeviceMismatchError became,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_in_a_block_is_found(tiny_models, mistake: Callable[[torch.Tensor], torch.Tensor]):
    rule, error = MISTAKES[mistake]

    def forward(block, *arguments, **named):
        return mistake(library_forward(block, *arguments, **named))

    with fake_card():
        engine = load(tiny_models["z-image"], "bfloat16", "exact")
        replace_forward(engine.components.transformer.layers[:1], forward)
        with Watch(engine) as watch:
            with pytest.raises(error) if error else nullcontext():
                draw(engine, SMALL)
        assert any(line.startswith(f"{rule}: ") for line in watch.found), watch.found
