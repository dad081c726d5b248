"""Cores between the oldest and the newest that have an environment here: where their memory management changed, taken
from the checkout's history and run with its Python. They are asked what the nodes ask of them, without their server."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

import pytest

from tests.comfyui.conftest import REPOSITORY

# comfy.memory_management came with 0.12, its extra_ram_release with 0.19.
VERSIONS = ("0.11.0", "0.12.0", "0.18.1", "0.19.0", "0.22.0")
CHILD = """
import sys
core, base = sys.argv[1:]
sys.path.insert(0, core)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import comfyui_version, torch
import comfy.model_management as management
from candela import Request
from candela.comfyui import models, nodes
from candela.comfyui.vae import EngineVAE

def managed():
    return sorted(type(one.model.model.component).__name__ for one in management.current_loaded_models)

with torch.inference_mode():
    model = models.load("demo", "float32")
    request = Request("a red star", width=64, height=64, steps=1)
    def latents():
        return model.engine.denoise(request, model.engine.encode(request.prompts))
    first = latents()
    before = managed()
    management.unload_all_models()
    between = managed()
    assert torch.equal(first, latents())
    assert EngineVAE(model).decode(first).shape == (1, 64, 64, 3)
    assert models.load("demo", "float32").engine is model.engine
    print(comfyui_version.__version__, len(before), len(between), len(managed()))
"""


def git(core, *arguments: str) -> bytes:
    command = ["git", "-C", str(core.path), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_a_core_of_any_age_manages_the_model(core, version, tmp_path):
    pattern = f'__version__ = "{version}"'
    found = git(core, "log", "--format=%H", "-S", pattern, "--reverse", "--", "comfyui_version.py").decode().split()
    if not found:
        pytest.skip(f"the history of {core.path} does not reach to {version}")
    archive = git(core, "archive", found[0], ":(glob)**/*.py")  # its large files may be absent from the history
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "core", filter="data")
    command = [core.python, "-c", CHILD, tmp_path / "core", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split()[-4:] == [version, "2", "0", "2"]  # encoding and denoising; gone; denoising and decoding
