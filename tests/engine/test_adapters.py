"""LoRAs of every format change the model as if its weights had been merged by hand, and leave no trace."""

from __future__ import annotations

import copy
import math
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from candela import Engine, InvalidRequest, Lora, MismatchedModel, ModelNotFound, Request
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.checkpoints.packed import QuantizedLinear
from candela.engine.adapters import file_sha256
from candela.errors import DamagedFile
from tests import layouts, loras
from tests.loras import FORMATS, Format

SMALL = Request("a red star", width=64, height=64, steps=1, guidance=0.0, seed=3)


@pytest.fixture(scope="module")
def engine(tiny_models) -> Engine:
    return Engine.load(tiny_models["z-image"], device="cpu")


@pytest.fixture(autouse=True)
def _nothing_on(engine):
    yield
    engine.set_loras([])


def latents(engine: Engine, request: Request = SMALL) -> torch.Tensor:
    return engine.denoise(request, engine.encode(request.prompts))


def merged(engine: Engine, *deltas: tuple[float, loras.Deltas]) -> torch.Tensor:
    """What the model gives with W + strength x delta in place of W, merged in float32."""
    other = copy.copy(engine)
    transformer = copy.deepcopy(engine.components.transformer)
    with torch.no_grad():
        for strength, delta in deltas:
            for name, value in delta.items():
                transformer.get_submodule(name).weight += strength * value
    other.components = type(engine.components)({**engine.components.by_name, "transformer": transformer})
    return latents(other)


def write(tmp_path, engine, name="lora", fmt=FORMATS["transformer.*.lora_A/B (peft)"], **options):
    path = tmp_path / f"{name}.safetensors"
    return path, loras.write(path, fmt, engine.components.transformer, **options)


def table(engine: Engine, folder) -> list[tuple[str, int, int, float]]:
    """Format, modules applied, modules there are, and how far the latents are from those of merged weights,
    as a part of what the LoRA changes."""
    rows, plain = [], latents(engine)
    for label, fmt in FORMATS.items():
        path, delta = write(folder, engine, fmt=fmt)
        (report,) = engine.set_loras([Lora(path)])
        found = latents(engine)
        engine.set_loras([])
        expected = merged(engine, (1.0, delta))
        change = (expected - plain).abs().max()
        rows.append((label, report.modules, len(delta), float((found - expected).abs().max() / change)))
    return rows


def test_every_format_is_applied_whole(engine, tmp_path):
    rows = table(engine, tmp_path)
    for label, applied, there, difference in rows:
        print(f"{label:50} {applied}/{there}  {difference:.1e}")
    assert [(label, applied) for label, applied, _, _ in rows] == [(label, 28) for label in FORMATS]
    assert all(there == 28 for _, _, there, _ in rows)
    assert max(difference for *_, difference in rows) < 5e-5


@pytest.mark.parametrize("family", ["lumina-image-2", "lumina-next"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_other_families(tiny_models, tmp_path, family, fused):
    if family == "lumina-next" and fused:
        pytest.skip("its authors do not fuse")
    engine = Engine.load(tiny_models[family], device="cpu")
    path, delta = write(tmp_path, engine, fmt=Format("diffusion_model.", fused=fused))
    plain = latents(engine)
    (report,) = engine.set_loras([Lora(path, 0.7)])
    assert report.modules == len(delta) >= 20
    found = latents(engine)
    engine.set_loras([])
    expected = merged(engine, (0.7, delta))
    assert not torch.allclose(found, plain, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_shared_query_changes_both_of_its_modules(tiny_models, tmp_path):
    engine = Engine.load(tiny_models["lumina-next"], device="cpu")
    down, up = torch.randn(2, 24), torch.randn(24, 2) * 0.1
    path = tmp_path / "query.safetensors"
    name = "diffusion_model.layers.1.attention.wq"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, path)
    (report,) = engine.set_loras([Lora(path)])
    assert report.modules == 2
    found = latents(engine)
    engine.set_loras([])
    both = {f"layers.1.attn{k}.to_q": up @ down for k in (1, 2)}
    torch.testing.assert_close(found, merged(engine, (1.0, both)), atol=1e-4, rtol=1e-4)


def test_taking_them_off_leaves_no_trace(engine, tmp_path):
    before, state = latents(engine), list(engine.components.transformer.state_dict())
    names = [name for name, _ in engine.components.transformer.named_modules()]
    path, _ = write(tmp_path, engine, fmt=FORMATS["DoRA, lycoris_*, dora_scale by column, fused"])
    engine.set_loras([Lora(path), Lora(path, -0.5)])
    assert list(engine.components.transformer.state_dict()) == state, "the weights are not touched"
    assert not torch.equal(latents(engine), before)
    assert engine.set_loras([]) == () == engine.loras
    assert torch.equal(latents(engine), before)
    assert [name for name, _ in engine.components.transformer.named_modules()] == names


def test_strength_zero_changes_nothing_and_is_still_counted(engine, tmp_path):
    before = latents(engine)
    path, _ = write(tmp_path, engine)
    (report,) = engine.set_loras([Lora(path, 0)])
    assert report.modules == 28
    assert torch.equal(latents(engine), before)


@pytest.mark.parametrize("label", ["transformer.*.lora_A/B (peft)", "DoRA, lora_unet_*, dora_scale by row, fused"])
@pytest.mark.parametrize("strength", [-1.0, 0.3, 2.0])
def test_strength_scales_the_whole_change(engine, tmp_path, label, strength):
    path, delta = write(tmp_path, engine, fmt=FORMATS[label], std=0.1)
    engine.set_loras([Lora(path, strength)])
    found = latents(engine)
    engine.set_loras([])
    torch.testing.assert_close(found, merged(engine, (strength, delta)), atol=1e-4, rtol=1e-4)


def test_several_add_up(engine, tmp_path):
    one, first = write(tmp_path, engine, "one", seed=1)
    two, second = write(tmp_path, engine, "two", FORMATS["LoKr, lycoris_*, fused qkv"], seed=2, std=0.1)
    three, third = write(tmp_path, engine, "three", FORMATS["DoRA, transformer.*.lora_magnitude_vector"], std=0.1)
    reports = engine.set_loras([Lora(one, 0.5), Lora(two, -0.8), Lora(three)])
    assert [report.modules for report in reports] == [28, 28, 28]
    found = latents(engine)
    engine.set_loras([])
    torch.testing.assert_close(found, merged(engine, (0.5, first), (-0.8, second), (1.0, third)), atol=2e-4, rtol=2e-4)


def test_the_set_is_replaced_and_the_same_one_is_kept(engine, tmp_path):
    one, _ = write(tmp_path, engine, "one", seed=1)
    two, _ = write(tmp_path, engine, "two", seed=2)
    engine.set_loras([Lora(two)])
    expected = latents(engine)
    engine.set_loras([Lora(one)])
    kept = engine.components.transformer.layers[0].attention.to_q.candela_loras
    engine.set_loras([Lora(one)])
    assert engine.components.transformer.layers[0].attention.to_q.candela_loras is kept
    engine.set_loras([Lora(two)])
    assert torch.equal(latents(engine), expected)


def test_a_changed_file_is_read_again(engine, tmp_path):
    path, _ = write(tmp_path, engine, seed=1)
    engine.set_loras([Lora(path)])
    first = latents(engine)
    path.unlink()
    write(tmp_path, engine, seed=2)
    engine.set_loras([Lora(path)])
    assert not torch.equal(latents(engine), first)


def test_changed_settings_beside_it_are_read_again(engine, tmp_path):
    path, _ = write(tmp_path, engine, "adapter_model", seed=1)
    settings = path.with_name("adapter_config.json")
    pictures, hashes = [], []
    for alpha in (3, 12):
        settings.write_text(f'{{"r": 3, "lora_alpha": {alpha}}}')
        (report,) = engine.set_loras([Lora(path)])
        pictures.append(latents(engine))
        hashes.append(report.sha256)
    assert not torch.equal(*pictures)
    assert hashes[0] != hashes[1]


def test_an_alpha_of_nought(engine, tmp_path):
    path, _ = write(tmp_path, engine, fmt=Format("transformer.", alpha=0.0))
    with pytest.raises(MismatchedModel, match=r"has the alpha 0, which some programs take for its rank"):
        engine.set_loras([Lora(path)])


def test_a_set_that_fails_leaves_the_one_before(engine, tmp_path):
    good, _ = write(tmp_path, engine)
    engine.set_loras([Lora(good)])
    before, on = latents(engine), engine.loras
    tensors = load_file(good)
    tensors["transformer.layers.0.attention.to_q.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(DamagedFile, match=r"layers.0.attention.to_q.lora_A.weight holds NaN"):
        engine.set_loras([Lora(good), Lora(tmp_path / "bad.safetensors")])
    with pytest.raises(ModelNotFound, match="there is no LoRA file"):
        engine.set_loras([Lora(tmp_path / "none.safetensors")])
    assert engine.loras == on
    assert torch.equal(latents(engine), before)


@pytest.mark.parametrize("layout", ["Q8_0", "Q4_0", "scaled-fp8", "nvfp4"])
@pytest.mark.parametrize(
    "label",
    ["diffusion_model.*, fused qkv", "LoKr, lycoris_*, fused qkv", "DoRA, lora_unet_*, dora_scale by row, fused",
     "DoRA, lycoris_*, dora_scale by column, fused"],
)  # fmt: skip
def test_on_quantised_layers(tmp_path, label, layout):
    """GGUF and fp8 files of the demo, against plain layers with the values that the packed ones stand for."""
    engine = Engine.load(layouts.export(DEMO_FOLDER, tmp_path / layout, "z-image", layout), device="cpu")
    plain = Engine.load("demo", device="cpu")
    packed = {n: m for n, m in engine.components.transformer.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(packed) > 20
    for name, layer in packed.items():
        plain.components.transformer.get_submodule(name).weight.data.copy_(layer.weight)
    path, delta = write(tmp_path, plain, fmt=FORMATS[label])
    expected = merged(plain, (0.6, delta))
    before = latents(engine)
    torch.testing.assert_close(before, latents(plain), atol=1e-4, rtol=1e-4)
    (report,) = engine.set_loras([Lora(path, 0.6)])
    assert report.modules == len(delta)
    torch.testing.assert_close(latents(engine), expected, atol=5e-4, rtol=5e-4)
    engine.set_loras([])
    assert torch.equal(latents(engine), before)


def test_deltas_follow_the_model_to_another_type_and_place(tiny_models, tmp_path):
    engine = Engine.load(tiny_models["z-image"], device="cpu", dtype="bfloat16")
    path, _ = write(tmp_path, engine)
    engine.set_loras([Lora(path)])
    added = engine.components.transformer.layers[0].attention.to_q.candela_loras
    assert {buffer.dtype for buffer in added.buffers()} == {torch.bfloat16}
    engine.components.transformer.to("meta")
    assert {buffer.device.type for buffer in added.buffers()} == {"meta"}


def test_alpha_from_peft_s_settings(engine, tmp_path):
    patterns = {r"layers\.1\.attention\.to_q": 12, "^attention.to_k": 99, "layers.7": 99}
    settings = {"r": 3, "lora_alpha": 6, "alpha_pattern": patterns}
    for rslora, scale in ((False, 2.0), (True, 2.0 * math.sqrt(3))):
        metadata = loras.peft_settings(**settings, use_rslora=rslora)
        path, delta = write(tmp_path, engine, metadata=metadata)
        engine.set_loras([Lora(path, 0.2)])
        found = latents(engine)
        engine.set_loras([])
        delta = {name: value * scale for name, value in delta.items()}
        delta["layers.1.attention.to_q"] *= 2
        torch.testing.assert_close(found, merged(engine, (0.2, delta)), atol=2e-4, rtol=2e-4)


def test_biases(engine, tmp_path):
    name, path = "diffusion_model.layers.0.feed_forward.w1", tmp_path / "bias.safetensors"
    down, up, one, two = torch.randn(2, 32), torch.randn(85, 2), torch.randn(85), torch.randn(85)
    tensors = {
        "lora_A.weight": down,
        "lora_B.weight": up,
        "lora_B.bias": one,
        "diff_b": two,
        "alpha": torch.tensor(1.0),
    }
    save_file({f"{name}.{role}": value for role, value in tensors.items()}, path)
    linear = engine.components.transformer.layers[0].feed_forward.w1
    x = torch.randn(5, 32)
    plain = linear(x)
    engine.set_loras([Lora(path, 2.0)])
    torch.testing.assert_close(linear(x), plain + 2 * (0.5 * (x @ down.T @ up.T + one) + two))


def test_pictures_carry_them(engine, tmp_path):
    path, _ = write(tmp_path, engine)
    (report,) = engine.set_loras([Lora(path, 0.25)])
    record = engine.generate(SMALL).records[0]
    (lora,) = record.loras
    assert (lora.name, lora.strength, lora.sha256) == (path.name, 0.25, report.sha256)
    assert report.sha256 == file_sha256.__wrapped__(str(path), ())
    assert "LoRA: lora 0.25" in record.parameters()
    assert type(record).from_json(record.to_json()) == record


def test_it_waits_for_a_running_request(engine, tmp_path):
    path, _ = write(tmp_path, engine)
    expected, started, done = latents(engine), threading.Event(), []

    def change():
        started.wait(10)
        engine.set_loras([Lora(path)])
        done.append(True)

    thread = threading.Thread(target=change)
    thread.start()
    found = engine.denoise(SMALL, engine.encode(SMALL.prompts), on_step=lambda step: started.set())
    thread.join()
    assert done and torch.equal(found, expected)


@pytest.mark.parametrize("strength", [math.nan, math.inf, "much", None, 1000])
def test_strengths_that_are_none(strength):
    with pytest.raises(InvalidRequest, match="strength"):
        Lora("x.safetensors", strength)


def test_something_else_than_a_lora(engine):
    with pytest.raises(InvalidRequest, match=r"a LoRA is a Lora, not str"):
        engine.set_loras(["x.safetensors"])


def test_checking_reads_no_tensor(engine, tmp_path):
    path, _ = write(tmp_path, engine)
    tensors = load_file(path)
    tensors["transformer.layers.0.attention.to_q.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, path)
    engine.check_loras([Lora(path)])
    with pytest.raises(DamagedFile):
        engine.set_loras([Lora(path)])


@pytest.mark.parametrize("middle", ["lora", "lora_linear_layer"])
def test_names_of_older_diffusers(engine, tmp_path, middle):
    path, delta = write(tmp_path, engine, fmt=Format("unet.", keys=(f"{middle}.down.weight", f"{middle}.up.weight")))
    assert engine.set_loras([Lora(path)])[0].modules == len(delta)


def test_a_lora_of_another_family(tiny_models, engine, tmp_path):
    lumina = Engine.load(tiny_models["lumina-image-2"], device="cpu")
    path, _ = write(tmp_path, lumina)
    with pytest.raises(MismatchedModel, match=r"is a LoRA for lumina-image-2; the model is z-image"):
        engine.set_loras([Lora(path)])


def test_the_documentation_lists_what_is_tested():
    text = (Path(__file__).parents[2] / "docs" / "lora.md").read_text()
    assert [line for line in text.splitlines() if "28/28" in line] == [f"| {label} | 28/28 |" for label in FORMATS]
