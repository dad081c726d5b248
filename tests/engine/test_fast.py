"""Fast mode: 8-bit arithmetic as it should be, pictures that stay right, weights kept for the next start."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImageTransformer2DModel

from candela import CandelaWarning, Engine, InvalidRequest, Lora, Record, Request
from candela.checkpoints import read_checkpoint
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.checkpoints.packed import Scaled, rounded
from candela.demo import check, held_out_prompts
from candela.engine.fast import KINDS, compile_blocks, keeping, modes
from candela.engine.fast.arithmetic import EightBitLinear, fp8_product, int8_linear, int8_product, product
from candela.engine.fast.weights import ROUNDED
from candela.engine.placing import Host, Shelf
from candela.families import family_of
from tests import layouts, loras, tiny_pipelines
from tests.conftest import pixels
from tests.loras import FORMATS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Request("a red star", width=64, height=64, steps=1, seed=3)
STAR = Request("a red star on a blue background", width=96, height=96, steps=2, seed=5)
STORED = {"int8": ("int8", "Q8_0"), "fp8": ("fp8", "scaled-fp8", "comfy-fp8")}  # files that people have


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where this test's 8-bit weights are kept."""
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache" / "fast"


def latents(engine: Engine) -> torch.Tensor:
    """With guidance off, which is 0 for Z-Image and 1 for the others."""
    request = dataclasses.replace(SMALL, guidance=0.0 if engine.family.name == "z-image" else 1.0)
    return engine.denoise(request, engine.encode(request.prompts))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 16, 40])
@pytest.mark.parametrize(("wide", "high"), [(160, 426), (426, 160), (33, 7), (2048, 64)])
def test_the_gpu_s_kernels_multiply_what_the_cpu_multiplies(tokens, wide, high):
    """torch has the same two operators on the CPU; what cuBLAS asks of sizes is padded."""
    x, w = noise(tokens, wide, seed=1), noise(high, wide, seed=2)
    (a, _), (b, _) = rounded(x, torch.int8), rounded(w, torch.int8)
    exact = int8_product(a, b)
    assert exact.dtype == torch.int32
    assert torch.equal(exact.double(), a.double() @ b.double().T)
    (a, _), (b, _) = rounded(x, torch.float8_e4m3fn), rounded(w, torch.float8_e4m3fn)
    expected = a.float() @ b.float().T
    torch.testing.assert_close(fp8_product(a, b).float(), expected, rtol=2**-8, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.013), ("fp8", 0.04)])
def test_products_are_as_good_as_8_bits_can_be(kind, error):
    x, w = noise(50, 512, seed=1) * torch.logspace(-3, 3, 50)[:, None], noise(96, 512, seed=2)
    w *= torch.logspace(-2, 2, 96)[:, None]
    packed = Scaled.of(w, KINDS[kind])
    y = product(x, packed.values, packed.scale)
    expected = x @ w.T
    weighed = x.norm(dim=1)[:, None] * w.norm(dim=1)  # each row and token counts alike
    assert ((y - expected) / weighed).norm() / (expected / weighed).norm() < error


def test_a_row_of_zeros_stays_zero_and_what_is_not_finite_shows():
    packed = Scaled.of(noise(8, 32), torch.int8)
    x = noise(3, 32)
    x[1], x[2, 5] = 0, torch.inf
    y = product(x, packed.values, packed.scale)
    assert y[1].abs().max() == 0
    assert not y[2].isfinite().any()


@pytest.mark.parametrize("rotation", [0, 16])
def test_a_layer_over_8_bits(rotation):
    w, bias, x = noise(48, 64, seed=1), noise(48, seed=2), noise(2, 5, 64, seed=3)
    turned = (w.unflatten(1, (-1, 16)) @ layouts.regular_hadamard(16).T).flatten(1) if rotation else w
    packed = dataclasses.replace(Scaled.of(turned, torch.int8), rotation=rotation)
    layer = EightBitLinear(packed, torch.nn.Parameter(bias), torch.float32)
    expected = x @ w.T + bias
    assert ((layer(x) - expected).norm() / expected.norm()) < 0.015
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0])
    assert (layer.weight - w).norm() / w.norm() < 0.01, "DoRA asks for it"


@pytest.mark.parametrize("rotation", [0, 16])
def test_comfy_kitchen_computes_the_same(rotation):
    pytest.importorskip("comfy_kitchen", reason="candela[fast] is not installed")
    x, bias, packed = noise(20, 64, seed=3), noise(48, seed=2), Scaled.of(noise(48, 64, seed=1), torch.int8)
    ours = EightBitLinear(dataclasses.replace(packed, rotation=rotation), torch.nn.Parameter(bias), torch.float32)(x)
    torch.testing.assert_close(int8_linear(x, packed.values, packed.scale, bias, rotation), ours)


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_right_and_say_how_they_were_made(demo, kind):
    prompts = held_out_prompts(12, 5)
    request = Request([text for text, _ in prompts], seed=5)
    engine = Engine.load("demo", fast=kind, device="cpu")
    result, exact = engine.generate(request), demo.generate(request)
    right = [check(image, scene).ok for image, (_, scene) in zip(result.images, prompts)]
    assert sum(right) >= sum(check(image, scene).ok for image, (_, scene) in zip(exact.images, prompts)) - 1
    difference = np.mean([np.abs(np.float32(a) - np.float32(b)).mean() for a, b in zip(result.images, exact.images)])
    assert 0.01 < difference < 4, "of 255: another arithmetic, nearly the same picture"
    record = result.records[0]
    assert (record.mode, exact.records[0].mode) == (f"fast {kind}", "exact")
    assert f"Mode: fast {kind}" in record.parameters()
    assert "Mode:" not in exact.records[0].parameters()
    assert Record.from_json(record.to_json()) == record
    again = Engine.load("demo", fast=kind, device="cpu").generate(request.alone(0))
    assert pixels(again.images[0]) == pixels(engine.generate(request.alone(0)).images[0])


def test_a_record_from_before_there_were_modes_is_exact():
    assert Record.from_json('{"model": "demo", "prompt": "x", "seed": 1, "family": "z-image", "negative_prompt": null,'
                            '"width": 64, "height": 64, "steps": 1, "guidance": 0, "cfg": 1, "strength": 1,'
                            '"dtype": "float32", "device": "cpu"}').mode == "exact"  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["z-image", "lumina-image-2", "lumina-next"])
def test_every_family_rounds_attention_and_feed_forward_only(tiny_models, kept, family, kind):
    exact, fast = (Engine.load(tiny_models[family], fast=each, device="cpu") for each in (False, kind))
    layers = dict(fast.components.transformer.named_modules())
    linears = {n for n, m in exact.components.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    in_8_bits = {n for n, m in layers.items() if isinstance(m, EightBitLinear)}
    assert in_8_bits == {n for n in linears if any(part in n for part in (".att", ".feed_forward."))} != set()
    for name in linears - in_8_bits:
        assert torch.equal(layers[name].weight, exact.components.transformer.get_submodule(name).weight)
    one, other = latents(exact), latents(fast)
    error = ((one - other).norm() / one.norm()).item()
    assert 1e-4 < error < (0.1 if kind == "int8" else 0.2)
    (file,) = kept.iterdir()
    written = file.stat().st_ino
    assert torch.equal(latents(Engine.load(tiny_models[family], fast=kind, device="cpu")), other)
    assert file.stat().st_ino == written, "read, and not made again"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_changes_the_picture_as_in_exact_mode_and_leaves_no_trace(tiny_models, tmp_path, kind):
    exact, fast = (Engine.load(tiny_models["z-image"], fast=each, device="cpu") for each in (False, kind))
    paths = []
    for name in ("transformer.*.lora_A/B (peft)", "DoRA, lycoris_*, dora_scale by column, fused"):
        paths.append(tmp_path / f"{len(paths)}.safetensors")
        loras.write(paths[-1], FORMATS[name], exact.components.transformer)
    before = latents(exact), latents(fast)
    for path in paths:
        changes = []
        for engine, plain in zip((exact, fast), before):
            engine.set_loras([Lora(path)])
            changes.append(latents(engine) - plain)
        assert (changes[0] - changes[1]).norm() < 0.3 * changes[0].norm()
    fast.set_loras([])
    assert torch.equal(latents(fast), before[1])


def test_compiled_blocks_notice_loras(tiny_models, tmp_path):
    """With dynamo's own backend "eager": what is traced and guarded, without minutes of code generation."""
    engine = Engine.load(tiny_models["z-image"], fast="int8", device="cpu")
    path = tmp_path / "lora.safetensors"
    loras.write(
        path, FORMATS["bare keys, .default."], Engine.load(tiny_models["z-image"], device="cpu").components.transformer
    )
    plain = latents(engine)
    engine.set_loras([Lora(path)])
    changed = latents(engine)
    engine.set_loras([])
    compile_blocks(engine.components.transformer, backend="eager")
    torch.testing.assert_close(latents(engine), plain)
    engine.set_loras([Lora(path)])
    torch.testing.assert_close(latents(engine), changed)
    assert not torch.allclose(changed, plain, atol=0.1)
    torch._dynamo.reset()


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_start_reads_the_kept_weights_and_nothing_of_the_source(demo_copy, kept, kind):
    first = Engine.load(demo_copy, fast=kind, device="cpu").generate(STAR)
    (file,) = kept.iterdir()
    (source,) = (demo_copy / "transformer").glob("*.safetensors")
    assert file.stat().st_size < 0.35 * 2 * source.stat().st_size, "of float32; two thirds of the weights are rounded"
    stat, data = source.stat(), bytearray(source.read_bytes())
    data[-2_000_000:] = bytes(2_000_000)
    source.write_bytes(data)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert pixels(Engine.load(demo_copy, fast=kind, device="cpu").generate(STAR).images[0]) == pixels(first.images[0])
    os.utime(source)
    assert pixels(Engine.load(demo_copy, fast=kind, device="cpu").generate(STAR).images[0]) != pixels(first.images[0])
    assert len(list(kept.iterdir())) == 2, "another source, another file"


def test_half_the_bytes_at_full_size():
    with torch.device("meta"):
        sizes = {name: p.shape for name, p in ZImageTransformer2DModel().named_parameters()}
    total = sum(shape.numel() for shape in sizes.values())
    rounded_ones = [shape for name, shape in sizes.items() if ROUNDED.search(name) and len(shape) == 2]
    in_8_bits = sum(shape.numel() + 4 * shape[0] for shape in rounded_ones)
    rest = total - sum(shape.numel() for shape in rounded_ones)
    assert total > 6e9
    assert (in_8_bits + 2 * rest) / (2 * total) < 0.52


@pytest.mark.parametrize("damage", [lambda data: data[:-1000], lambda data: b"", lambda data: b"x" + data[1:]])
def test_damaged_kept_weights_are_made_again(demo_copy, kept, damage):
    first = Engine.load(demo_copy, fast="int8", device="cpu").generate(STAR)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert pixels(Engine.load(demo_copy, fast="int8", device="cpu").generate(STAR).images[0]) == pixels(first.images[0])
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_it_runs_and_says_so(kept):
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where a folder should be")
    with pytest.warns(CandelaWarning, match=r"could not be kept in .*cache.fast .*Set CANDELA_HOME"):
        engine = Engine.load("demo", fast="int8", device="cpu")
    assert engine.generate(STAR).records[0].mode == "fast int8"


def test_the_files_used_last_stay(kept, monkeypatch):
    kept.mkdir(parents=True)
    for k in range(6):
        (kept / f"{k}.safetensors").write_bytes(b"")
        os.utime(kept / f"{k}.safetensors", (k, k))
    (kept / "old.part").write_bytes(b"")
    os.utime(kept / "old.part", (1, 1))
    (kept / "new.part").write_bytes(b"")
    keeping.tidy(kept)
    assert sorted(f.name for f in kept.iterdir()) == [*(f"{k}.safetensors" for k in range(2, 6)), "new.part"]


@pytest.mark.parametrize(("kind", "layout"), [(kind, layout) for kind, names in STORED.items() for layout in names])
def test_files_that_are_in_8_bits_already(tmp_path, kept, kind, layout):
    """ComfyUI's int8 and fp8 keep their numbers; GGUF is rounded to ours."""
    model = layouts.export(DEMO_FOLDER, tmp_path / "m", "z-image", layout)
    exact, fast = Engine.load(model, device="cpu"), Engine.load(model, fast=kind, device="cpu")
    one, other = exact.generate(STAR), fast.generate(STAR)
    difference = np.abs(np.float32(one.images[0]) - np.float32(other.images[0])).mean()
    assert 0 < difference < 4
    stored = exact.components.transformer.get_submodule("layers.1.attention.to_k")
    ours = fast.components.transformer.get_submodule("layers.1.attention.to_k")
    if layout != "Q8_0":
        assert torch.equal(ours.values.float(), stored.values.float())
        assert torch.equal(ours.scale, stored.scale)
    assert type(fast.components.transformer.get_submodule("layers.1.adaLN_modulation.0")) is torch.nn.Linear
    assert bool(kept.is_dir()) == (kind == "int8"), "only what was rounded here is kept"
    again = Engine.load(model, fast=kind, device="cpu").generate(STAR)
    assert pixels(again.images[0]) == pixels(other.images[0])


# --- which kind ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "asked", "layout", "picked"),
    [
        ((8, 0), True, "bf16", "int8"),
        ((8, 6), "auto", "bf16", "int8"),
        ((8, 9), True, "bf16", "fp8"),
        ((9, 0), True, "int8", "int8"),
        ((12, 0), True, "scaled-fp8", "fp8"),
        ((8, 6), True, "scaled-fp8", "int8"),
        ((9, 0), "int8", "bf16", "int8"),
    ],
)
def test_the_card_and_the_file_decide(monkeypatch, tmp_path, capability, asked, layout, picked):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    checkpoint = read_checkpoint(layouts.export(DEMO_FOLDER, tmp_path / "m", "z-image", layout))
    assert modes.pick(asked, CUDA, family_of(checkpoint), checkpoint) == picked


def test_what_cannot_be_fast_says_why(monkeypatch, tmp_path):
    checkpoint = read_checkpoint("demo")
    family = family_of(checkpoint)
    for asked in (True, "auto"):
        with pytest.raises(InvalidRequest, match=r"8\.0 or more, and this is the cpu, where 8 bits would be slower"):
            Engine.load("demo", device="cpu", fast=asked)
    with pytest.raises(InvalidRequest, match="fast mode 'quick' is unknown: use auto, int8 or fp8"):
        Engine.load("demo", fast="quick", device="cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(InvalidRequest, match=r"fp8 needs .* 8\.9 or more, and this is NVIDIA GeForce with 8\.6: use"):
        modes.pick("fp8", CUDA, family, checkpoint)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for asked in (True, "int8", "fp8"):
        with pytest.raises(InvalidRequest, match=r"needs .* and this is NVIDIA GeForce with 7\.5.*leave"):
            modes.pick(asked, CUDA, family, checkpoint)
    folder = tmp_path / "sd"
    tiny_pipelines.stable_diffusion().save_pretrained(folder)
    with pytest.raises(InvalidRequest, match=r"for Z-Image and the Lumina models; .* runs in exact mode only"):
        Engine.load(folder, fast="int8", device="cpu")
    shutil.rmtree(folder)


def test_a_placement_from_files_is_refused():
    """On the CPU what is away is read from the model's files, which hold other numbers."""
    with pytest.raises(InvalidRequest, match="leave one of the two out"):
        Engine.load("demo", device="cpu", fast="int8", placement="streamed")


def test_compiled_blocks_leave_the_hooks_of_a_placement_outside(tiny_models):
    """A placement brings a block's weights in a hook: traced, each block would be compiled anew, up to a limit."""
    from torch._dynamo.testing import CompileCounter

    engine = Engine.load(tiny_models["z-image"], fast="int8", device="cpu")
    transformer = engine.components.transformer
    before = engine.generate(Request("a star", width=64, height=64, steps=1, guidance=0.0)).images[0]
    counter = CompileCounter()
    compile_blocks(transformer, backend=counter)
    shelf = Shelf(transformer, Host(transformer, pinned=False), torch.device("cpu"))
    shelf.away()
    shelf.streamed()
    after = engine.generate(Request("a star", width=64, height=64, steps=3, guidance=0.0))
    again = engine.generate(Request("a star", width=64, height=64, steps=1, guidance=0.0)).images[0]
    assert counter.frame_count <= 4  # noise refiner, context refiner, layers; and once more where sizes vary
    assert after.images
    assert np.abs(np.asarray(before, dtype=int) - np.asarray(again, dtype=int)).max() <= 1
