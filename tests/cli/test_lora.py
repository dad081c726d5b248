"""`--lora`: parsed, checked before anything is loaded, applied, recorded and brought back by `--like`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from candela import Engine, InvalidRequest, Lora, Request, read_record
from candela.cli.loras import parsed
from tests import loras
from tests.cli.test_generate import files, run
from tests.conftest import pixels

PROMPT = "a large red star on a blue background"


@pytest.fixture(scope="module")
def lora(demo, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    loras.write(path, loras.FORMATS["lora_unet_* (kohya), fused qkv, alpha"], demo.components.transformer, std=0.1)
    return path


@pytest.fixture
def no_weights(monkeypatch):
    """Loading any is a failure."""
    monkeypatch.setattr("candela.engine.engine.load_components", lambda *a, **k: pytest.fail("weights were loaded"))


def test_the_shell_s_picture_is_that_of_python(tmp_path, lora, demo):
    plain = demo.generate(Request(PROMPT, seed=15)).images[0]
    engine = Engine.load("demo", device="cpu")
    (report,) = engine.set_loras([Lora(lora, 0.8)])
    expected = engine.generate(Request(PROMPT, seed=15)).images[0]
    assert pixels(expected) != pixels(plain)
    done = run("generate", PROMPT, "--seed", 15, "--lora", f"{lora}:0.8", "--out", tmp_path / "a.png", "--json")
    assert done.exit_code == 0, done.output
    assert pixels(Image.open(tmp_path / "a.png")) == pixels(expected)
    answer = json.loads(done.stdout)
    assert answer["loras"] == [{"path": str(lora), "strength": 0.8, "modules": report.modules}]
    assert f"{lora} at 0.8: all of its {report.modules} modules applied" in done.stderr


def test_like_brings_them_back(tmp_path, lora):
    one = tmp_path / "one.png"
    arguments = ("generate", PROMPT, "--lora", f"{lora}:0.5", "--lora", f"{lora}:-0.2", "--out", one)
    assert run(*arguments).exit_code == 0
    assert [(each.name, each.strength) for each in read_record(one).loras] == [(lora.name, 0.5), (lora.name, -0.2)]
    assert str(lora.parent).encode() not in one.read_bytes(), "a picture does not tell where its maker's files lie"
    elsewhere = run("generate", "--like", one, "--out", tmp_path / "none.png")
    assert elsewhere.exit_code == 2
    assert "neither in the working folder nor beside the picture" in elsewhere.stderr
    assert f"--lora {lora.name}:0.5 --lora {lora.name}:-0.2" in elsewhere.stderr
    shutil.copyfile(lora, tmp_path / lora.name)
    again = run("generate", "--like", one, "--out", tmp_path / "two.png")
    assert again.exit_code == 0, again.output
    assert pixels(Image.open(tmp_path / "two.png")) == pixels(Image.open(one))
    other = run("generate", "--like", one, "--lora", lora, "--out", tmp_path / "three.png")
    assert other.exit_code == 0
    assert [each.strength for each in read_record(tmp_path / "three.png").loras] == [1.0]
    shown = run("show", one).stdout
    assert f"{lora.name} at 0.5, {lora.name} at -0.2" in shown
    assert "sha256" not in shown


def test_like_with_a_changed_or_lost_file(tmp_path, lora, no_weights):
    own = tmp_path / "own.safetensors"
    own.write_bytes(lora.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        from candela.checkpoints import load_components

        patch.setattr("candela.engine.engine.load_components", load_components)
        assert run("generate", PROMPT, "--steps", 1, "--lora", own, "--out", tmp_path / "one.png").exit_code == 0
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    changed = run("generate", "--like", tmp_path / "one.png", "--out", tmp_path / "o")
    assert changed.exit_code == 2
    assert "has changed since" in changed.stderr
    own.unlink()
    lost = run("generate", "--like", tmp_path / "one.png", "--out", tmp_path / "o")
    assert lost.exit_code == 2
    assert "neither in the working folder nor beside the picture" in lost.stderr
    assert files(tmp_path) == ["one.png"]


def test_pictures_without_loras_show_none(tmp_path):
    assert run("generate", PROMPT, "--steps", 1, "--out", tmp_path / "one.png").exit_code == 0
    assert "lora" not in run("show", tmp_path / "one.png").stdout


@pytest.mark.parametrize("case", ["foreign", "missing", "strength", "not finite", "no LoRA"])
def test_bad_ones_are_refused_before_weights_are_read(tmp_path, lora, no_weights, case):
    flux, name = tmp_path / "flux.safetensors", "transformer.single_transformer_blocks.0.attn.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 3072), f"{name}.lora_B.weight": torch.ones(3072, 2)}, flux)
    argument, words = {
        "foreign": (flux, ["flux.safetensors", "LoRA for Flux", "z-image"]),
        "missing": (tmp_path / "none.safetensors", ["no LoRA file", "none.safetensors"]),
        "strength": (f"{lora}:strong", ["'strong' is no number", f"{lora}:0.8"]),
        "not finite": (f"{lora}:nan", ["strength nan", "out of range"]),
        "no LoRA": (Path(loras.__file__), ["safetensors"]),
    }[case]
    done = run("generate", PROMPT, "--lora", argument, "--out", tmp_path / "o", "--json")
    assert done.exit_code == 2, done.output
    for word in words:
        assert word in done.stderr
    assert "error" in json.loads(done.stdout)
    assert files(tmp_path) == ["flux.safetensors"]


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:0.8", "C:\\loras\\a.safetensors", 0.8),
        ("C:/loras/a.safetensors:.8", "C:/loras/a.safetensors", 0.8),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
    ],
)
def test_parsing(text, path, strength):
    assert parsed(text) == Lora(path, strength)


def test_a_file_with_a_number_behind_a_colon_in_its_own_name(tmp_path, lora):
    own = tmp_path / "style:2"
    own.write_bytes(lora.read_bytes())
    assert parsed(str(own)) == Lora(str(own), 1.0)
    assert parsed(f"{own}:3") == Lora(str(own), 3.0)
    with pytest.raises(InvalidRequest, match="no number"):
        parsed(f"{own}:x")
