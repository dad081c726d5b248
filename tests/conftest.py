from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may touch the network
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: each keeps to its core, and so do processes that it starts
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CANDELA_HOME"] = tempfile.mkdtemp(prefix="candela-tests-")  # what is installed here is nobody's business

import hashlib
import shutil
import signal
from pathlib import Path

import pytest
import torch

from candela import Engine, Request
from candela.checkpoints.catalogue import DEMO_FOLDER
from tests import tiny


def pytest_configure(config: pytest.Config) -> None:
    """Whoever runs the tests on a machine with a card gets the same ones: also the processes that tests start stay on
    the CPU, but for those of `make test-cuda`."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A shell's background job ignores Ctrl-C, and so would every process that a test starts to send it one.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo() -> Engine:
    return Engine.load("demo", device="cpu")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """A folder per family; read only."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # biases are as torch draws them
        return {
            "z-image": tiny.z_image(root / "z-image"),
            "lumina-image-2": tiny.lumina_image_2(root / "lumina-image-2"),
            "lumina-next": tiny.lumina_next(root / "lumina-next"),
        }


@pytest.fixture
def demo_copy(tmp_path) -> Path:
    """A copy of the demo's folder that a test may damage."""
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "model"))


def pixels(image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


STAR = Request("a large red star on a blue background", seed=15)


@pytest.fixture(scope="session")
def star_pixels(demo) -> str:
    """The picture that every door must give for STAR."""
    return pixels(demo.generate(STAR).images[0])
