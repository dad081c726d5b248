"""Damaged and incomplete folders are told from headers, by name and number."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from candela import DamagedFile, Engine, MismatchedModel, ModelNotFound
from candela.checkpoints import CATALOGUE, find, installed, read_folder
from candela.checkpoints.catalogue import DEMO_FOLDER, hub_cache

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def test_the_demo_reads_from_its_headers():
    folder = read_folder(DEMO_FOLDER)
    assert folder.pipeline == "ZImagePipeline"
    assert (
        folder.parts["transformer"].config["cap_feat_dim"] == folder.parts["text_encoder"].config["hidden_size"] == 128
    )
    assert folder.bytes == sum(p.stat().st_size for p in DEMO_FOLDER.rglob("*.safetensors"))


def test_a_folder_without_an_index_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelNotFound, match=r"no model_index.json.*it holds: notes.txt"):
        Engine.load(tmp_path, device="cpu")


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(demo_copy, component):
    (demo_copy / component).rename(demo_copy / "elsewhere")
    with pytest.raises(MismatchedModel, match=f"the component '{component}' is missing"):
        Engine.load(demo_copy, device="cpu")


def test_a_component_that_the_index_leaves_out_is_named(demo_copy):
    index = json.loads((demo_copy / "model_index.json").read_text())
    del index["vae"]
    (demo_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(MismatchedModel, match="has no vae; z-image needs transformer, text_encoder"):
        Engine.load(demo_copy, device="cpu")


def test_missing_weights(demo_copy):
    (demo_copy / WEIGHTS).unlink()
    with pytest.raises(MismatchedModel, match=r"holds no \.safetensors weights"):
        Engine.load(demo_copy, device="cpu")


def test_pickles_are_refused_unopened(demo_copy):
    (demo_copy / WEIGHTS).rename((demo_copy / WEIGHTS).with_suffix(".bin"))
    with pytest.raises(MismatchedModel, match=r"only diffusion_pytorch_model.bin: such files can run code"):
        Engine.load(demo_copy, device="cpu")


def test_a_missing_shard_is_counted(demo_copy):
    file = demo_copy / WEIGHTS
    shards = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    file.rename(file.with_name(shards[0]))
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MismatchedModel, match=r"00002-of-00002.*is missing \(1 of 2 are here\)"):
        Engine.load(demo_copy, device="cpu")


def test_sharded_weights_load_to_the_same(demo_copy, demo):
    file = demo_copy / WEIGHTS
    tensors = load_file(file)
    names = sorted(tensors)
    shards = {f"diffusion_pytorch_model-0000{k + 1}-of-00002.safetensors": names[k::2] for k in (0, 1)}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, file.with_name(shard), metadata={"format": "pt"})
    file.unlink()
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    loaded = Engine.load(demo_copy, device="cpu").components.transformer.state_dict()
    for name, tensor in demo.components.transformer.state_dict().items():
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -1])
def test_a_truncated_file_is_told_in_bytes(demo_copy, keep):
    file = demo_copy / WEIGHTS
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(DamagedFile, match=rf"{file.name}.*({len(data)} bytes, the file has|{len(data[:keep])} bytes)"):
        Engine.load(demo_copy, device="cpu")


def test_a_longer_file_is_told_in_bytes(demo_copy):
    file = demo_copy / WEIGHTS
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DamagedFile, match="longer than it should be"):
        Engine.load(demo_copy, device="cpu")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04" + b"x" * 100, "zip archive"),
        (b"\x80\x04" + b"x" * 100, "Python pickle"),
        (b"GGUF" + b"x" * 100, "GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 100, "git-lfs pointer"),
        (b"<!DOCTYPE html>" + b"x" * 100, "web page"),
        (b"hello" * 50, "not a header length"),
    ],
)
def test_another_format_under_the_name_is_named(demo_copy, data, what):
    (demo_copy / WEIGHTS).write_bytes(data)
    with pytest.raises(DamagedFile, match=what):
        Engine.load(demo_copy, device="cpu")


@pytest.mark.parametrize("header", [b"not json", b"[]", b'{"a": 5}', b'{"a": {"data_offsets": []}}', b'{"a":' * 30])
def test_a_header_that_is_no_header(demo_copy, header):
    (demo_copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DamagedFile, match="header cannot be read"):
        Engine.load(demo_copy, device="cpu")


def test_damaged_json_is_named(demo_copy):
    (demo_copy / "vae" / "config.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"vae/config.json is not readable JSON"):
        Engine.load(demo_copy, device="cpu")


def test_a_damaged_tokenizer_is_named(demo_copy):
    (demo_copy / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(DamagedFile, match="tokenizer cannot be read"):
        Engine.load(demo_copy, device="cpu")


def test_missing_tensors_are_an_error_with_names(demo_copy):
    file = demo_copy / WEIGHTS
    tensors = load_file(file)
    del tensors["layers.1.attention.to_q.weight"]
    tensors["layers.1.attention.to_x.weight"] = torch.zeros(2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        MismatchedModel, match=r"1 missing \(layers.1.attention.to_q.weight\); 1 unexpected \(layers.1.attention.to_x"
    ):
        Engine.load(demo_copy, device="cpu")


def test_tensors_of_another_shape_are_an_error_with_names(demo_copy):
    file = demo_copy / WEIGHTS
    tensors = load_file(file)
    tensors["cap_embedder.1.bias"] = torch.zeros(3)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises((MismatchedModel, DamagedFile), match=r"cap_embedder.1.bias"):
        Engine.load(demo_copy, device="cpu")


def test_a_class_that_the_library_lacks_is_named(demo_copy):
    index = json.loads((demo_copy / "model_index.json").read_text())
    index["scheduler"] = ["my_module", "EvilScheduler"]
    (demo_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(MismatchedModel, match=r"my_module.EvilScheduler.*never code from a checkpoint"):
        Engine.load(demo_copy, device="cpu")


def test_unknown_names_get_the_nearest():
    with pytest.raises(ModelNotFound, match="no model 'dmo': did you mean demo"):
        find("dmo")
    with pytest.raises(ModelNotFound, match="did you mean z-image-turbo"):
        find("z-image-turb")
    with pytest.raises(ModelNotFound, match=r"known names: demo, z-image-turbo"):
        find("qqqqqq")


def test_a_known_model_that_is_not_here_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"not on this machine.*candela install z-image-turbo"):
        find("z-image-turbo")
    with pytest.raises(ModelNotFound, match="candela install someone/something"):
        find("someone/something")


def test_a_hub_repository_on_disk_is_found_and_runs(tmp_path, monkeypatch, tiny_models):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Tongyi-MAI--Z-Image"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / "abc").symlink_to(tiny_models["z-image"])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for name in ("z-image", "Tongyi-MAI/Z-Image"):
        assert find(name).folder.resolve() == tiny_models["z-image"]
    assert [model.name for model in installed()] == ["demo", "z-image"]
    engine = Engine.load("z-image", device="cpu")
    assert engine.defaults.steps == 50


@pytest.mark.parametrize(
    "environment",
    [{}, {"HF_HOME": "/somewhere/hf"}, {"HF_HUB_CACHE": "/else/where"}, {"XDG_CACHE_HOME": "/xdg"}],
    ids=str,
)
def test_the_hub_cache_is_where_the_library_puts_it(environment, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert str(hub_cache()) == theirs.stdout.strip()


def test_the_catalogue_names_itself():
    assert all(name == entry.name for name, entry in CATALOGUE.items())
