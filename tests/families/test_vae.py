"""VAEs whose latents are not 8 x 8 pixels: the size that was asked for, or a refusal from the configuration."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from PIL import Image

from candela import Engine, InvalidRequest, MismatchedModel, Request
from candela.checkpoints import read_folder
from candela.comfyui import latents
from candela.families import family_of
from tests import tiny

SIZE = {"width": 96, "height": 160}


@pytest.fixture(scope="module", params=[3, 5], ids=["factor 4", "factor 16"])
def other(request, tmp_path_factory):
    """(factor, folder, engine) of a Z-Image whose VAE has 3 or 5 blocks instead of 4."""
    folder = tiny.z_image(tmp_path_factory.mktemp("models") / "z-image", blocks=request.param)
    return 2 ** (request.param - 1), folder, Engine.load(folder, device="cpu")


def apart(one: Image.Image, two: Image.Image) -> int:
    assert one.size == two.size
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).max())


def test_the_picture_is_that_of_the_bare_pipeline_and_of_the_size_asked_for(other):
    factor, folder, engine = other
    bare = ZImagePipeline.from_pretrained(folder)
    theirs = bare("a", **SIZE, num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    sizes = []
    result = engine.generate(
        Request("a", seed=5, steps=2, guidance=5, **SIZE),
        on_step=lambda step: sizes.extend(preview.size for preview in step.preview()),
    )
    assert theirs.size == result.images[0].size == (result.records[0].width, result.records[0].height) == (96, 160)
    assert apart(result.images[0], theirs) <= 1
    assert sizes == [(96 // factor, 160 // factor)] * 2


def test_image_to_image_is_too(other):
    _, folder, engine = other
    bare = ZImageImg2ImgPipeline.from_pretrained(folder)
    start = Image.effect_noise((96, 160), 60).convert("RGB")
    theirs = bare(
        "a", image=start, strength=0.5, num_inference_steps=4, guidance_scale=0.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    ours = engine.generate(Request("a", image=start, strength=0.5, steps=4, guidance=0, seed=5)).images[0]
    assert apart(ours, theirs) <= 1


def test_latents_masks_and_tiles_count_with_the_factor(other):
    factor, _, engine = other
    raw = engine.encode_image(Image.new("RGB", (96, 160)), 96, 160)
    assert raw.shape == (1, 16, 160 // factor, 96 // factor)
    again = engine.generate(Request("a", latents=raw, steps=2)).request
    assert (again.width, again.height) == (96, 160)
    with pytest.raises(
        InvalidRequest, match=rf"the mask is 12x20; at 96x160 it must be {96 // factor}x{160 // factor}"
    ):
        engine.check(Request("a", latents=raw, mask=torch.ones(1, 1, 20, 12)))
    vae = engine.components.vae
    own = vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.tile_sample_min_size, vae.tile_latent_min_size = 1024, 1024 // factor  # of a VAE made for large pictures
    try:
        tiled = engine.decode_pixels(torch.zeros(1, 16, 1, 1024 // factor), tiled=True)
    finally:
        vae.tile_sample_min_size, vae.tile_latent_min_size = own
    assert tiled.shape == (1, 3, factor, 1024)


def test_sizes_that_its_patches_cannot_make_are_refused(other):
    factor, folder, _ = other
    checkpoint = read_folder(folder)
    family = family_of(checkpoint)
    with pytest.raises(InvalidRequest, match=f"width {3 * factor} is not a multiple of {2 * factor}: use {2 * factor}"):
        Request("a", width=3 * factor, height=64).resolved(family, family.defaults(checkpoint))
    side = 2 * factor * 513  # patches: one more than there are positions for
    with pytest.raises(InvalidRequest, match=f"width {side} is out of range"):
        Request("a", width=side, height=64).resolved(family, family.defaults(checkpoint))


def test_a_latent_of_comfyui_counts_with_the_factor(other):
    """An empty one asks for pixels: its own factor counts."""
    factor, _, engine = other
    given = latents.read({"samples": torch.ones(1, 16, 6, 4)}, 16, engine.family.latent_factor)
    assert (given.width, given.height) == (4 * factor, 6 * factor)
    given = latents.read({"samples": torch.zeros(1, 4, 6, 4)}, 16, factor)
    assert (given.width, given.height) == (32, 48)
    given = latents.read({"samples": torch.zeros(1, 16, 6, 4), "downscale_ratio_spacial": 16}, 16, factor)
    assert (given.width, given.height) == (64, 96)


# --- refused by their configuration: no weight is read ------------------------------------------------


def edit(folder, **values):
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("blocks", [3, 5])
@pytest.mark.parametrize("name", ["lumina_image_2", "lumina_next"])
def test_luminas_pipelines_count_8_and_so_refuse(tmp_path, name, blocks):
    getattr(tiny, name)(tmp_path)
    channels = [4] * blocks
    edit(tmp_path, block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * blocks,
         up_block_types=["UpDecoderBlock2D"] * blocks)  # fmt: skip
    pixels = 2 ** (blocks - 1)
    family = name.replace("_", "-")
    with pytest.raises(
        MismatchedModel,
        match=rf"vae: one latent of this VAE is {pixels}x{pixels} pixels; {family} works with VAEs of 8x8",
    ):
        family_of(read_folder(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"up_block_types": ["UpDecoderBlock2D"] * 3},
        {"block_out_channels": 7},
        {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
        {"block_out_channels": [4] * 9, "down_block_types": ["x"] * 9, "up_block_types": ["x"] * 9},
    ],
)
def test_a_vae_whose_numbers_contradict_each_other(tmp_path, values):
    tiny.z_image(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(
        MismatchedModel, match=r"\d block_out_channels, \d down_block_types, \d up_block_types; it needs"
    ):
        family_of(read_folder(tmp_path))
