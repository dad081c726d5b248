"""Models from files in ComfyUI's own folders: the folder's picture, and plain words for a wrong choice."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import Scene, check
from tests import layouts
from tests.comfyui import graphs
from tests.comfyui.conftest import REPOSITORY
from tests.comfyui.test_workflows import rgb


@pytest.fixture(scope="module")
def files(base):
    """The demo as ComfyUI's split files, its text encoder as GGUF with its tokenizer, and as one file."""
    models = base / "models"
    transformer = layouts.z_image(layouts.tensors_of(DEMO_FOLDER, "transformer"))
    text_encoder = layouts.tensors_of(DEMO_FOLDER, "text_encoder")
    vae = layouts.vae(layouts.tensors_of(DEMO_FOLDER, "vae"))
    for folder in ("diffusion_models", "text_encoders", "vae", "checkpoints"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    metadata = layouts.configs_of(DEMO_FOLDER, "transformer")
    layouts.write_safetensors(models / "diffusion_models" / "z_image_turbo.safetensors", transformer, metadata)
    layouts.write_gguf(models / "diffusion_models" / "z_image_turbo.gguf", "lumina2", transformer, "Q8_0", metadata)
    words = layouts.configs_of(DEMO_FOLDER, "text_encoder") | layouts.gguf_tokenizer(DEMO_FOLDER)
    layouts.write_gguf(
        models / "text_encoders" / "qwen.gguf", "qwen3", layouts.llama_cpp(text_encoder, 0), "BF16", words
    )
    layouts.write_safetensors(models / "vae" / "ae.safetensors", vae, layouts.configs_of(DEMO_FOLDER, "vae"))
    shapes = layouts.named(layouts.encoder("gemma2"), lambda tensors: layouts.llama_cpp(tensors, 2))
    layouts.hollow_gguf(models / "text_encoders" / "gemma-2-2b.gguf", "gemma2", shapes, "Q8_0")
    return models


def from_parts(model: str, text_encoder: str = "qwen.gguf", vae: str = "ae.safetensors") -> dict:
    graph = graphs.text_to_image(model=model, seed=7)
    graph["1"]["inputs"] |= {"text_encoder": text_encoder, "vae": vae}
    return graph


def test_the_lists_show_the_files(server, files):
    inputs = server.get_json("/object_info/CandelaLoadModel")["CandelaLoadModel"]["input"]

    def options(kind: str, name: str) -> list[str]:
        first, second = inputs[kind][name]
        return second["options"] if isinstance(first, str) else first

    assert {"diffusion_models/z_image_turbo.safetensors", "diffusion_models/z_image_turbo.gguf"} <= set(
        options("required", "model")
    )
    assert options("optional", "text_encoder")[0] == "the model's own"
    assert "qwen.gguf" in options("optional", "text_encoder")
    assert "ae.safetensors" in options("optional", "vae")


def test_split_files_give_the_folder_s_picture(server, files):
    plain = server.run(graphs.text_to_image(seed=7))
    assert plain.ok, plain.error
    run = server.run(from_parts("diffusion_models/z_image_turbo.safetensors"))
    assert run.ok, run.error
    assert np.array_equal(rgb(run.pictures["5"][0]), rgb(plain.pictures["5"][0]))


def test_gguf_draws_what_was_asked_for(server, files):
    run = server.run(from_parts("diffusion_models/z_image_turbo.gguf"))
    assert run.ok, run.error
    wanted = Scene("star", "yellow", "purple", "centre", "large")
    assert check(run.pictures["5"][0].convert("RGB"), wanted).ok


def test_a_transformer_alone_says_what_to_choose(server, files):
    run = server.run(graphs.text_to_image(model="diffusion_models/z_image_turbo.gguf"))
    assert "z-image transformer" in run.error and "text_encoder and vae of the Load node" in run.error


def test_a_whole_file_with_another_vae(server, files):
    """And without one: the model's own parts are those of the file."""
    parts = ("transformer", "text_encoder", "vae")
    transformer = layouts.z_image(layouts.tensors_of(DEMO_FOLDER, "transformer"))
    tensors = {f"model.diffusion_model.{n}": t for n, t in transformer.items()}
    tensors |= {f"vae.{n}": t for n, t in layouts.vae(layouts.tensors_of(DEMO_FOLDER, "vae")).items()}
    metadata = layouts.configs_of(DEMO_FOLDER, *parts)
    layouts.write_safetensors(files / "checkpoints" / "z_image_turbo.safetensors", tensors, metadata)
    plain = server.run(graphs.text_to_image(seed=7))
    for vae in ("the model's own", "ae.safetensors"):
        run = server.run(from_parts("checkpoints/z_image_turbo.safetensors", vae=vae))
        assert run.ok, run.error
        assert np.array_equal(rgb(run.pictures["5"][0]), rgb(plain.pictures["5"][0]))
    run = server.run(from_parts("demo", text_encoder="the model's own"))
    assert run.ok, run.error
    run = server.run(from_parts("diffusion_models/z_image_turbo.gguf", vae="the model's own"))
    assert "text_encoder and vae of the Load node" in run.error


def test_the_famous_mistake_is_told_in_widths(server, files):
    run = server.run(from_parts("diffusion_models/z_image_turbo.gguf", text_encoder="gemma-2-2b.gguf"))
    assert "gives 2304 (Gemma-2-2B)" in run.error, run.error


def test_a_file_that_is_gone_is_named(server, files):
    run = server.run(from_parts("diffusion_models/z_image_turbo.gguf", vae="nowhere.safetensors"))
    assert "no vae 'nowhere.safetensors' here" in run.error


def test_packed_weights_equal_comfyui_s_own_kernels(core):
    """nvfp4, mxfp8 and int8 with rotation, against the library that writes and reads them in ComfyUI."""
    script = REPOSITORY / "tests" / "comfyui" / "kernels.py"
    run = subprocess.run([core.python, script], capture_output=True, text=True, env={"PYTHONPATH": REPOSITORY / "src"})
    if "No module named 'comfy_kitchen'" in run.stderr:
        pytest.skip(f"core {core.version} comes without comfy_kitchen")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["nvfp4", "mxfp8", "int8", "int8+rotation"]
