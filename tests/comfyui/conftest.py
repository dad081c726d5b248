"""Real ComfyUI servers, one per core found on this machine, with the pack linked in as a clone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo.world import Scene, draw
from tests import tiny
from tests.comfyui.server import Core, Server, cores

REPOSITORY = Path(__file__).parents[2]
CORES = cores()
HOLE = (20, 20, 108, 108)  # left, top, right, bottom: what start_picture leaves to be painted


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.comfyui)


@pytest.fixture(scope="session", params=CORES, ids=lambda core: f"core-{core.version}")
def core(request) -> Core:
    return request.param


def lay_out(base: Path) -> Path:
    """A base directory with the pack, models under the names that workflows use, and pictures to start from.

    The demo stands in for the large models: same pipeline, same code, and a checker that reads its pictures."""
    models = base / "models" / "diffusers"
    for folder in (base / "custom_nodes", base / "input", models / "Alpha-VLLM"):
        folder.mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / "candela").symlink_to(REPOSITORY)
    for name in ("z-image-turbo", "lumina-image-2", "lumina-next-sft"):
        (models / name).symlink_to(DEMO_FOLDER)
    tiny.lumina_next(models / "Alpha-VLLM" / "Lumina-Next-SFT-diffusers")
    broken = Path(shutil.copytree(DEMO_FOLDER, models / "broken"))
    (file,) = (broken / "vae").glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    damaged = Path(shutil.copytree(DEMO_FOLDER, models / "not-a-number"))
    (file,) = (damaged / "transformer").glob("*.safetensors")
    weights = load_file(file)
    weights["layers.0.attention.to_q.weight"] *= float("nan")
    save_file(weights, file)
    start_picture().save(base / "input" / "example.png")
    return base


def start_picture() -> Image.Image:
    """A red circle on blue, with a transparent box where an inpainting run is to paint."""
    picture = draw(Scene("circle", "red", "blue", "centre", "large"), 128, 128).convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, HOLE)
    picture.putalpha(alpha)
    return picture


@pytest.fixture(scope="session")
def base(core, tmp_path_factory) -> Path:
    return lay_out(tmp_path_factory.mktemp(f"comfyui-{core.version}"))


@pytest.fixture(scope="session")
def server(core, base):
    server = Server(core, base)
    yield server
    server.stop()
