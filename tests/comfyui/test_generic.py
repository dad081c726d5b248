"""A pipeline without a family of its own, through the same nodes: the shell's picture, progress, VAE nodes."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from tests.comfyui import graphs
from tests.comfyui.conftest import REPOSITORY
from tests.comfyui.test_workflows import rgb
from tests.tiny_pipelines import PIPELINES

NAMES = {"sdxl-turbo": "sdxl-turbo", "FluxPipeline": "tiny-flux"}  # of the builder, and of the folder


@pytest.fixture(scope="module")
def folders(base):
    for name, folder in NAMES.items():
        torch.manual_seed(0)
        PIPELINES[name]().save_pretrained(base / "models" / "diffusers" / folder)
    return base / "models" / "diffusers"


@pytest.mark.parametrize("name", NAMES.values())
def test_the_shell_s_picture(name, server, core, folders, tmp_path):
    graph = graphs.text_to_image(model=name, width=64, height=64, steps=2, seed=7, batch_size=2)
    graph["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 1]}}
    graph["7"] = graphs.save("6")
    run = server.run(graph)
    assert run.ok, run.error
    assert max(data["value"] for data in run.named("progress")) == 4, "two pictures of two steps"
    subprocess.run(
        [core.python, "-m", "candela", "generate", graphs.STAR, "--model", folders / name, "--seed", "8", "--width",
         "64", "--height", "64", "--steps", "2", "--out", tmp_path / "shell.png"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}, check=True, capture_output=True,
    )  # fmt: skip
    shell = rgb(Image.open(tmp_path / "shell.png"))
    first, second = (rgb(picture) for picture in run.pictures["5"])
    assert not np.array_equal(first, second)
    assert np.array_equal(second, shell), "picture 2 has seed + 1"
    through_vae = rgb(run.pictures["7"][1]).astype(int)
    assert abs(through_vae - shell).max() <= 1, "the LATENT is raw VAE space"


def test_what_it_cannot_do_is_said(server, folders):
    latent = {"20": {"class_type": "EmptyLatentImage", "inputs": {"width": 60, "height": 64, "batch_size": 1}}}
    run = server.run({**graphs.text_to_image(model="sdxl-turbo", width=60, height=64), **latent})
    assert "60" in run.error
    graph = graphs.text_to_image(model="sdxl-turbo", latent=["11", 0], denoise=0.5, steps=2)
    run = server.run(graph | graphs.encoded_picture())
    assert "StableDiffusionXLPipeline" in run.error, run.error
