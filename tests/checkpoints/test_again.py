"""Tensors that are read again are those that were loaded, or their files are not taken for a source."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from candela.checkpoints import read_checkpoint, read_folder
from candela.checkpoints.again import Files
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.loading import hollow_component, load_component
from candela.errors import DamagedFile
from tests import layouts, tiny, tiny_pipelines

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def state_of(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_read_again(part, name, dtype):
    """What is left away, and what comes back, are together what was loaded."""
    loaded = state_of(load_component(part, name, device=CPU, dtype=dtype))
    hollow = hollow_component(part, name, dtype=dtype)
    state = state_of(hollow)
    files = Files.of(part, hollow, dtype)
    assert state.keys() == loaded.keys()
    assert {name for name, tensor in state.items() if tensor.is_meta} <= files.names
    back = files.read(files.names, CPU)
    for key, tensor in loaded.items():
        again = back[key] if key in back else state[key]
        assert again.dtype == tensor.dtype == state[key].dtype and again.shape == state[key].shape, key
        assert torch.equal(again.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["z-image", "lumina-image-2", "lumina-next"])
def test_folders_are_read_again(tiny_models, family, dtype):
    for name, part in read_folder(tiny_models[family]).parts.items():
        if part.files and name != "vae":
            assert_read_again(part, name, dtype)


@pytest.mark.parametrize("layout", ["int8", "scaled-fp8", "nvfp4", "Q8_0", "Q5_K", "all-in-one"])
@pytest.mark.parametrize("family", ["z-image", "lumina-image-2"])
def test_files_are_read_again(tiny_models, tmp_path, family, layout):
    model = layouts.export(tiny_models[family], tmp_path, family, layout)
    for name, part in read_checkpoint(model).parts.items():
        if part.files and name != "vae":
            assert_read_again(part, name, torch.bfloat16)


def test_llama_cpp_s_norms_and_tables_are_read_again(tiny_models, tmp_path):
    """Gemma's norms lose the 1 that is added there, without their values when nothing is read."""
    text = layouts.llama_cpp(layouts.tensors_of(tiny_models["lumina-image-2"], "text_encoder"), 2)
    own = layouts.configs_of(tiny_models["lumina-image-2"], "text_encoder")
    path = layouts.write_gguf(tmp_path / "gemma.gguf", "gemma2", text, "Q8_0", own)
    from candela.checkpoints.contents import read_contents

    found = read_contents(path).get("text_encoder")
    assert found is not None
    architecture = found.architecture
    part = Part(path, architecture.library, architecture.class_name, found.config, (path,), found)
    assert_read_again(part, "text_encoder", torch.bfloat16)


def test_files_under_other_names_are_no_source(tiny_models, tmp_path):
    """As those that diffusers renames while it loads them."""
    part = read_folder(tiny_models["z-image"]).parts["transformer"]
    module = load_component(part, "transformer", device=CPU, dtype=torch.float32)
    tensors = load_file(part.files[0])
    tensors["older.name"] = tensors.pop("layers.0.feed_forward.w1.weight")
    save_file(tensors, tmp_path / "older.safetensors")
    older = replace(part, files=(tmp_path / "older.safetensors",))
    assert Files.of(part, module, torch.float32) is not None
    assert Files.of(older, module, torch.float32) is None
    assert hollow_component(older, "transformer", dtype=torch.float32) is None


def test_what_a_quantiser_made_of_files_is_not_in_them(tiny_models):
    part = read_folder(tiny_models["z-image"]).parts["transformer"]
    module = load_component(part, "transformer", device=CPU, dtype=torch.float32)
    quantised = replace(part, config=part.config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert Files.of(quantised, module, torch.float32) is None


def test_tied_weights_are_not_parted(tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    module = tiny.randomize(LlamaForCausalLM(config), 60)
    module.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    files = tuple(tmp_path.glob("*.safetensors"))
    described = json.loads((tmp_path / "config.json").read_text())
    part = Part(tmp_path, "transformers", "LlamaForCausalLM", described, files)
    assert hollow_component(part, "text_encoder", dtype=torch.float32) is None
    assert Files.of(part, load_component(part, "text_encoder", device=CPU, dtype=torch.float32), torch.float32) is None


def test_what_the_library_keeps_in_float32_is_left_to_it(tmp_path):
    """T5 in float16: by patterns that only it reads."""
    tiny_pipelines.PIPELINES["StableDiffusion3Pipeline"]().save_pretrained(tmp_path)
    part = read_folder(tmp_path).parts["text_encoder_3"]
    assert hollow_component(part, "text_encoder_3", dtype=torch.float16) is None
    loaded = load_component(part, "text_encoder_3", device=CPU, dtype=torch.float16)
    assert any(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_read_within_inference_mode_they_are_ordinary_tensors(tiny_models):
    part = read_folder(tiny_models["z-image"]).parts["transformer"]
    files = Files.of(part, hollow_component(part, "transformer", dtype=torch.bfloat16), torch.bfloat16)
    assert files is not None
    with torch.inference_mode():
        read = files.read(files.names, CPU)
    assert read.keys() == files.names and not any(tensor.is_inference() for tensor in read.values())


@pytest.mark.parametrize("change", ["gone", "written anew"])
def test_files_that_have_changed_are_told(tiny_models, tmp_path, change):
    part = read_folder(tiny_models["z-image"]).parts["transformer"]
    part_file = part.files[0]
    copy = tmp_path / part_file.name
    copy.write_bytes(part_file.read_bytes())
    part = replace(part, files=(copy,))
    files = Files.of(part, hollow_component(part, "transformer", dtype=torch.bfloat16), torch.bfloat16)
    assert files is not None
    copy.unlink()
    if change == "written anew":
        save_file({name: tensor * 2 for name, tensor in load_file(part_file).items()}, copy)
    with pytest.raises(DamagedFile, match="cannot be read any more" if change == "gone" else "has been changed since"):
        files.read(files.names, CPU)
