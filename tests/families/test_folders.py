"""What a family makes of a folder before any weight is read."""

from __future__ import annotations

import json
import shutil

import pytest

from candela.checkpoints import read_folder
from candela.errors import DamagedFile, InvalidRequest, MismatchedModel
from candela.families import FAMILIES, Defaults, family_of


def edit(path, **values):
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))


def test_variants_have_their_own_defaults(tiny_models, tmp_path):
    folder = read_folder(tiny_models["z-image"])
    assert family_of(folder).defaults(folder) == Defaults(1024, 1024, 50, 4.0)
    turbo = tmp_path / "turbo"
    shutil.copytree(tiny_models["z-image"], turbo)
    edit(turbo / "scheduler" / "scheduler_config.json", shift=3.0)
    folder = read_folder(turbo)
    assert family_of(folder).defaults(folder) == Defaults(1024, 1024, 8, 0.0)


def test_the_folder_s_own_defaults_win(demo_copy):
    folder = read_folder(demo_copy)
    assert family_of(folder).defaults(folder) == Defaults(128, 128, 8, 0.0)


@pytest.mark.parametrize("defaults", [{"sampler": 3}, {"steps": "many"}, {"width": True}])
def test_preferences_that_are_none_are_named(demo_copy, defaults):
    edit(demo_copy / "candela.json", defaults=defaults)
    folder = read_folder(demo_copy)
    with pytest.raises(DamagedFile, match=rf"candela.json.*the default {next(iter(defaults))}="):
        family_of(folder).defaults(folder)


def test_a_pipeline_with_components_of_other_kinds_is_named_for_what_it_is(demo_copy):
    edit(demo_copy / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(MismatchedModel, match="has no unet; StableDiffusionPipeline needs vae"):
        family_of(read_folder(demo_copy))


def test_a_wrong_text_encoder_is_told_in_widths(demo_copy):
    edit(demo_copy / "text_encoder" / "config.json", hidden_size=2304)
    with pytest.raises(
        MismatchedModel, match=r"width 128 \(a qwen3\); the text encoder .*text_encoder gives 2304 \(Qwen3Model\)"
    ):
        family_of(read_folder(demo_copy))


def test_a_wrong_vae_is_told_in_channels(demo_copy):
    edit(demo_copy / "vae" / "config.json", latent_channels=4)
    with pytest.raises(MismatchedModel, match=r"works on 16 latent channels; the VAE .*vae has 4"):
        family_of(read_folder(demo_copy))


def test_an_unknown_pipeline_is_named(demo_copy):
    edit(demo_copy / "model_index.json", _class_name="NewestPipeline")
    with pytest.raises(MismatchedModel, match="is a NewestPipeline, which the installed diffusers does not have"):
        family_of(read_folder(demo_copy))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_sizes(family):
    family.check_size(16, family.max_side)
    with pytest.raises(InvalidRequest, match="width 130 is not a multiple of 16: use 128 or 144"):
        family.check_size(130, 128)
    with pytest.raises(InvalidRequest, match="height 7 is not a multiple of 16: use 16"):
        family.check_size(128, 7)
    with pytest.raises(InvalidRequest, match=rf"16 to {family.max_side}"):
        family.check_size(128, family.max_side + 16)
