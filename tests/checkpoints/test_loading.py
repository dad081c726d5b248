"""Folders are loaded as the libraries load them, bit for bit; weights that stay in their file survive its change."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3ForCausalLM, Qwen3Model

from candela.checkpoints import read_folder, reading
from candela.checkpoints.assembling import assemble
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.headers import read_header
from candela.checkpoints.loading import load_component, part_class
from candela.checkpoints.reading import Wanted, read_tensors
from candela.errors import DamagedFile
from tests import tiny, tiny_pipelines

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("folders")
    tiny.lumina_image_2(place / "lumina-image-2")
    tiny.z_image(place / "z-image")
    for name in ("StableDiffusion3Pipeline", "StableDiffusionXLPipeline"):
        tiny_pipelines.PIPELINES[name]().save_pretrained(place / name)  # CLIP, with and without projection, and T5
    return place


def tensors(module):
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return dict(named)


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    here, there = tensors(ours), tensors(theirs)
    assert here.keys() == there.keys()
    for name, value in there.items():
        assert here[name].dtype == value.dtype, name
        assert torch.equal(here[name].nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tensor_is_what_the_library_makes_of_it(folders, dtype):
    """Parameters, stored buffers and computed ones, also where both keep a part in float32."""
    for folder in sorted(folders.iterdir()):
        for name, part in read_folder(folder).parts.items():
            if part.files:
                stock = part_class(part, name).from_pretrained(part.path, local_files_only=True, dtype=dtype)
                if name == "vae" and dtype == torch.float16 and getattr(stock.config, "force_upcast", False):
                    stock = stock.float()
                assert_same(load_component(part, name, device=CPU, dtype=dtype), stock)


def test_the_families_are_assembled_without_the_library(folders):
    for family in ("z-image", "lumina-image-2"):
        for name, part in read_folder(folders / family).parts.items():
            if part.files:
                module = assemble(part, part_class(part, name), part.files, device=CPU, dtype=torch.bfloat16)
                assert module is not None, f"{family}: {name}"


def with_head(folder, cls, config) -> Part:
    """A language model saved whole, as many text encoders are published."""
    module = tiny.randomize(cls(config), 60)
    module.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    files = tuple(sorted(folder.glob("*.safetensors")))
    return Part(folder, "transformers", cls.__name__, module.config.to_dict(), files)


def test_a_text_encoder_is_taken_out_of_a_language_model(folders, tmp_path):
    config = Qwen3Model.config_class.from_pretrained(folders / "z-image" / "text_encoder")
    part = with_head(tmp_path, Qwen3ForCausalLM, config)
    names = read_header(part.files[0]).tensors
    assert "lm_head.weight" in names and "model.norm.weight" in names
    module = assemble(part, Qwen3Model, part.files, device=CPU, dtype=torch.float32)
    assert module is not None
    assert_same(module, Qwen3Model.from_pretrained(tmp_path, dtype=torch.float32))


def test_tied_weights_are_one_tensor(tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    part = with_head(tmp_path, LlamaForCausalLM, config)
    assert "lm_head.weight" not in read_header(part.files[0]).tensors
    module = assemble(part, LlamaForCausalLM, part.files, device=CPU, dtype=torch.float32)
    assert module is not None and module.lm_head.weight is module.model.embed_tokens.weight
    assert not module.lm_head.weight.is_meta


@pytest.mark.parametrize("change", ["a name", "a shape", "a missing one"])
def test_what_does_not_fit_to_the_letter_is_left_to_the_library(folders, tmp_path, change):
    part = read_folder(folders / "z-image").parts["transformer"]
    weights = load_file(part.files[0])
    first = next(iter(weights))
    value = weights.pop(first)
    if change == "a name":
        weights["another"] = value
    elif change == "a shape":
        weights[first] = torch.zeros(*value.shape, 2)
    save_file(weights, tmp_path / "changed.safetensors")
    cls = part_class(part, "transformer")
    assert assemble(part, cls, (tmp_path / "changed.safetensors",), device=CPU, dtype=torch.float32) is None


def wanted(path, dtype):
    return {name: Wanted(path, stored, dtype) for name, stored in read_header(path).tensors.items()}


@pytest.mark.parametrize("way", ["mapped", "one thread", "threads"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_converted_slice_by_slice(tmp_path, monkeypatch, dtype, way):
    values = {"long": torch.randn(1000, 7), "one": torch.randn(()), "none": torch.zeros(0, 3), "few": torch.randn(3)}
    save_file(values, tmp_path / "some.safetensors")
    monkeypatch.setattr(reading, "SLICE", 100)
    monkeypatch.setattr(reading, "PIECE", 1500)  # whole pages are let go while their neighbours are still to be read
    if way != "mapped":
        monkeypatch.setattr(reading, "_mapped", lambda wanted: {})
    if way == "threads":
        monkeypatch.setattr(reading, "FEW", 0)
    found = read_tensors(wanted(tmp_path / "some.safetensors", dtype), CPU)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == dtype and torch.equal(found[name], value.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["as stored", "converted"])
def test_a_file_cut_after_its_header_was_read_is_told(tmp_path, dtype):
    path = tmp_path / "cut.safetensors"
    save_file({"weight": torch.randn(4096, 64)}, path)
    asked = wanted(path, dtype)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100_000)
    with pytest.raises(DamagedFile, match="ends inside the tensor 'weight'"):
        read_tensors(asked, CPU)


CHANGED_MEANWHILE = """
import subprocess, sys
from pathlib import Path
from candela.checkpoints.mapping import mapped
data = mapped(Path(sys.argv[1]))
if data is None:
    print("no lease"); sys.exit()
view = data[1_000_000:]  # most of it was never touched
subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1], 'wb').write(b'short')", sys.argv[1]], check=True)
assert Path(sys.argv[1]).read_bytes() == b"short"
assert view.int().sum().item() == 7 * len(view) and len(view) == 4_000_123
del data, view
print("unharmed")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is mapped elsewhere")
def test_mapped_weights_survive_that_their_file_is_overwritten(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\x07" * 5_000_123)
    done = subprocess.run([sys.executable, "-c", CHANGED_MEANWHILE, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode} (-7 is SIGBUS): {done.stderr}"
    if "no lease" in done.stdout:
        pytest.skip("this file system grants no leases, so nothing is mapped")
    assert "unharmed" in done.stdout


def test_loads_within_inference_mode(tiny_models):
    """ComfyUI's nodes run in it; threads that read do not. From float32 files into bfloat16 every weight is read."""
    from candela import Engine, Request

    with torch.inference_mode():
        engine = Engine.load(tiny_models["z-image"], dtype="bfloat16", device="cpu")
        picture = engine.generate(Request("a star", width=64, height=64, steps=1, guidance=0.0)).images[0]
    assert picture.size == (64, 64)
    assert not any(p.is_inference() for m in engine.components.modules.values() for p in m.parameters())
