"""Previews by the decoder that `candela install taef1` brings."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from safetensors.torch import load_file

from candela import CandelaWarning, Engine, Request
from candela.checkpoints.card_memory import WORK
from candela.checkpoints.manifest import Installed, changing_manifest
from candela.engine.planning import plan
from candela.engine.preview import work
from tests import tiny


@pytest.fixture
def taef1(tmp_path, monkeypatch):
    """An AutoencoderTiny of TAEF1's shape with random weights, recorded as installed."""
    torch.manual_seed(3)
    blocks = (8, 8, 8, 8)
    decoder = AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=blocks, decoder_block_out_channels=blocks,
        scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip
    return install(decoder, tmp_path, monkeypatch)


def install(decoder: AutoencoderTiny, tmp_path: Path, monkeypatch) -> AutoencoderTiny:
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "data"))
    decoder.save_pretrained(tmp_path / "taef1")
    files = tuple(map(str, (tmp_path / "taef1").iterdir()))
    with changing_manifest() as manifest:
        manifest.models.append(
            Installed("taef1", "full", root="", source="", folder=str(tmp_path / "taef1"), files=files, whole=True)
        )
    return decoder.eval()


def test_flux_latents_are_shown_by_the_decoder(taef1, tiny_models):
    engine = Engine.load(tiny_models["z-image"], device="cpu")
    steps = []
    engine.generate(
        Request("a prompt", width=64, height=48, steps=2),
        on_step=lambda step: steps.append((step.denoised.clone(), step.preview())),
    )
    latents, (preview,) = steps[-1]
    assert preview.size == (64, 48), "as large as the picture"
    with torch.no_grad():
        pixels = taef1.decode(latents.float()).sample.clamp(-1, 1)
    (expected,) = VaeImageProcessor().postprocess(pixels, output_type="pil")
    assert np.array_equal(np.asarray(preview), np.asarray(expected))


def test_only_what_is_shown_is_decoded_a_picture_at_a_time_in_the_models_precision(taef1, tiny_models, monkeypatch):
    decoded, decode = [], AutoencoderTiny.decode

    def watched(decoder, latents, **options):
        decoded.append((len(latents), latents.dtype, next(decoder.parameters()).dtype))
        return decode(decoder, latents, **options)

    monkeypatch.setattr(AutoencoderTiny, "decode", watched)
    engine = Engine.load(tiny_models["z-image"], device="cpu", dtype="bfloat16")
    shown = []
    engine.generate(
        Request(["a prompt", "another"], width=64, height=48, steps=1),
        on_step=lambda step: shown.extend([step.preview(1), step.preview()]),
    )
    one = (1, torch.bfloat16, torch.bfloat16)
    assert decoded == [one] * 3
    assert len(shown[0]) == 1 and len(shown[1]) == 2
    assert np.array_equal(np.asarray(shown[0][0]), np.asarray(shown[1][0]))


def test_a_plan_counts_previews_where_they_would_be_shown(tmp_path, monkeypatch):
    """TAEF1's own sizes: more than a step of Z-Image takes, less than decoding the picture."""
    before = plan("z-image-turbo", vram=24 << 30)
    install(AutoencoderTiny(latent_channels=16, scaling_factor=1.0, shift_factor=0.0), tmp_path, monkeypatch)
    after = plan("z-image-turbo", vram=24 << 30)
    (_, step, decode), (_, shown, _) = ([stage.activations for stage in made.stages] for made in (before, after))
    assert step < shown < decode
    assert shown < WORK["transformer"] * 2 * 1024 * 1024, "what ComfyUI is asked for"
    document = Path(__file__).parents[2] / "docs" / "memory.md"
    assert f"{shown / 1e9:.2f} GB at 1024x1024 in 16 bits" in document.read_text()
    assert before.peak_bytes == after.peak_bytes


def test_latents_of_another_vae_are_not(taef1, demo):
    demo_again = Engine.load("demo", device="cpu")
    sizes = []
    demo_again.generate(Request("a red star", steps=1), on_step=lambda step: sizes.append(step.preview()[0].size))
    assert sizes == [(16, 16)], "the demo's VAE is its own"


def test_a_decoder_that_is_gone_is_no_reason_to_stop(taef1, tmp_path, tiny_models):
    next((tmp_path / "taef1").glob("*.safetensors")).unlink()
    sizes = []
    Engine.load(tiny_models["lumina-image-2"], device="cpu").generate(
        Request("a prompt", width=64, height=64, steps=1), on_step=lambda step: sizes.append(step.preview()[0].size)
    )
    assert sizes == [(8, 8)]


def cut(taef1: Path) -> str:
    (weights,) = taef1.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    return f"{re.escape(str(taef1))} cannot be loaded .*candela install taef1"


def pickled(taef1: Path) -> str:
    (weights,) = taef1.glob("*.safetensors")
    torch.save(load_file(weights), taef1 / "diffusion_pytorch_model.bin")
    weights.write_bytes(b"")
    return f"{re.escape(str(taef1))} cannot be loaded .*candela install taef1"


def configured_wrongly(taef1: Path) -> str:
    (taef1 / "config.json").write_text("[]")
    return f"{re.escape(str(taef1))} cannot be loaded .*candela install taef1"


def unreadable(taef1: Path) -> str:
    (taef1 / "config.json").write_text('{"act_fn": 7}')
    return f"{re.escape(str(taef1))} cannot be loaded .*candela install taef1"


def manifest_cut(taef1: Path) -> str:
    manifest = taef1.parent / "data" / "manifest.json"
    os.truncate(manifest, 20)
    return f"{re.escape(str(manifest))}, where Candela keeps .* cannot be read"


@pytest.mark.parametrize("damage", [cut, pickled, configured_wrongly, unreadable, manifest_cut])
def test_a_damaged_decoder_is_told_once_and_is_no_reason_to_stop(damage, taef1, tmp_path, tiny_models):
    says = damage(tmp_path / "taef1")
    sizes = []
    engine = Engine.load(tiny_models["z-image"], device="cpu")
    planned = work(engine.components.vae, 64, 64, torch.float32, "cpu")
    assert (planned > 0) == (damage in (cut, pickled)), "configurations tell, weights are not read"
    with pytest.warns(CandelaWarning, match=says) as told:
        engine.generate(
            Request("a prompt", width=64, height=64, steps=2), on_step=lambda step: sizes.append(step.preview()[0].size)
        )
    assert sizes == [(8, 8), (8, 8)]
    assert len([one for one in told if one.category is CandelaWarning and re.search(says, str(one.message))]) == 1


@pytest.mark.parametrize("model", ["z-image", "lumina-image-2"])
def test_these_vaes_are_flux_s(model, tiny_models):
    config = tiny.AutoencoderKL.load_config(tiny_models[model] / "vae")
    assert (config["latent_channels"], config["scaling_factor"], config["shift_factor"]) == (16, 0.3611, 0.1159)
