"""The LoRA node: the shell's picture, no trace when it is gone, and each branch its own."""

from __future__ import annotations

import os
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests import loras
from tests.comfyui import graphs
from tests.comfyui.conftest import REPOSITORY
from tests.comfyui.test_workflows import rgb


@pytest.fixture(scope="module")
def folder(base, demo):
    folder = base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name, label, seed in (("one", "lora_unet_* (kohya), fused qkv, alpha", 1), ("two", "bare keys, fused qkv", 2)):
        path = folder / f"{name}.safetensors"
        loras.write(path, loras.FORMATS[label], demo.components.transformer, seed=seed, std=0.1)
    return folder


def node(model: str, name: str, strength: float = 1.0) -> dict:
    inputs = {"model": [model, 0], "lora": f"{name}.safetensors", "strength": strength}
    return {"class_type": "CandelaLoadLora", "inputs": inputs}


def with_loras(*chain: tuple[str, float], seed: int = 7) -> dict:
    """Text to image through a chain of LoRA nodes, 30, 31, ..."""
    graph, before = graphs.text_to_image(seed=seed), "1"
    for number, (name, strength) in enumerate(chain, 30):
        graph[str(number)] = node(before, name, strength)
        before = str(number)
    graph["3"]["inputs"]["model"] = [before, 0]
    return graph


def picture(run, save: str = "5") -> np.ndarray:
    assert run.ok, run.error
    return rgb(run.pictures[save][0])


def test_the_shell_s_picture_and_no_trace(server, core, folder, tmp_path):
    plain = picture(server.run(graphs.text_to_image(seed=7)))
    found = picture(server.run(with_loras(("one", 0.8), ("two", -0.3))))
    assert not np.array_equal(found, plain)
    assert "one.safetensors at 0.8: all" in server.log
    subprocess.run(
        [core.python, "-m", "candela", "generate", graphs.STAR, "--seed", "7", "--out", tmp_path / "shell.png",
         "--lora", f"{folder / 'one.safetensors'}:0.8", "--lora", f"{folder / 'two.safetensors'}:-0.3"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}, check=True, capture_output=True,
    )  # fmt: skip
    from PIL import Image

    assert np.array_equal(rgb(Image.open(tmp_path / "shell.png")), found)
    server.run(graphs.text_to_image(seed=8))  # so that nothing is taken from a cache
    again = server.run(graphs.text_to_image(seed=7))
    assert np.array_equal(picture(again), plain)
    assert "3" in again.executed


def test_each_branch_has_its_own(server, folder):
    one = picture(server.run(with_loras(("one", 1.0), seed=40)))
    two = picture(server.run(with_loras(("two", 1.0), seed=40)))
    plain = picture(server.run(graphs.text_to_image(seed=40)))
    graph = graphs.text_to_image(seed=40)
    for offset, name in ((100, "one"), (200, "two")):
        lora, sampler, decode, saved = (str(offset + k) for k in range(4))
        graph[lora] = node("1", name)
        graph[sampler] = {**graph["3"], "inputs": {**graph["3"]["inputs"], "model": [lora, 0]}}
        graph[decode] = {"class_type": "CandelaDecode", "inputs": {"model": [lora, 0], "latent": [sampler, 0]}}
        graph[saved] = graphs.save(decode)
    # Another seed first, the branches run in one prompt, none of it cached.
    for entry in graph.values():
        if entry["class_type"] == "CandelaSampler":
            entry["inputs"]["seed"] = 41
    server.run(graph)
    for entry in graph.values():
        if entry["class_type"] == "CandelaSampler":
            entry["inputs"]["seed"] = 40
    run = server.run(graph)
    assert {"3", "101", "201"} <= run.executed
    assert np.array_equal(picture(run, "5"), plain)
    assert np.array_equal(picture(run, "103"), one)
    assert np.array_equal(picture(run, "203"), two)


def test_a_changed_file_is_read_again(server, folder, demo):
    path = folder / "edited.safetensors"
    fmt = loras.FORMATS["diffusion_model.*, split qkv"]
    loras.write(path, fmt, demo.components.transformer, seed=3, std=0.1)
    first = picture(server.run(with_loras(("edited", 1.0))))
    time.sleep(0.05)
    loras.write(path, fmt, demo.components.transformer, seed=4, std=0.1)
    second = server.run(with_loras(("edited", 1.0)))
    assert "30" in second.executed
    assert not np.array_equal(picture(second), first)
    third = server.run(with_loras(("edited", 1.0)))
    assert not {"3", "30"} & third.executed


def test_bad_ones_say_what_and_what_to_do(server, folder):
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 3072), f"{name}.lora_B.weight": torch.ones(3072, 2)}
    save_file(tensors, folder / "flux.safetensors")
    for file, words in {
        "flux": ["LoRA for Flux", "z-image"],
        "onne": ["'onne.safetensors'", "one.safetensors"],
    }.items():
        run = server.run(with_loras((file, 1.0)))
        assert not run.ok
        for word in words:
            assert word in run.error, run.error
    assert server.run(graphs.text_to_image(seed=9)).ok
