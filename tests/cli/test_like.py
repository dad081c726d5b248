"""`--like` with a stranger's picture: what it names is looked for by name, here and beside it, no path is opened."""

from __future__ import annotations

import builtins
import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from candela import read_record
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import Scene, draw
from candela.record import Lora, Start, save_png
from tests.attacks.texts import RECORD, picture_with, recorded
from tests.cli.test_generate import files, run
from tests.conftest import pixels

SIZE = ("--width", 96, "--height", 96, "--steps", 1)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Every path that is opened or asked about, by Python."""
    seen: list[str] = []

    def watched(real):
        def call(path, *rest, **named):
            seen.append(os.fspath(path) if isinstance(path, (str, os.PathLike)) else "")
            return real(path, *rest, **named)

        return call

    for home, name in ((builtins, "open"), (os, "open"), (os, "stat"), (os, "lstat"), (os, "listdir"), (os, "scandir")):
        monkeypatch.setattr(home, name, watched(getattr(home, name)))
    return seen


@pytest.mark.parametrize("where", ["/mnt/evil/share/{}", "\\\\evil\\share\\{}", "//evil/share/{}", "../evil/{}"])
@pytest.mark.parametrize("what", ["model", "part", "start", "lora"])
def test_no_path_of_a_record_is_touched(what, where, tmp_path, opened):
    place = where.format("x.safetensors")
    changes = {
        "model": {"model": place},
        "part": {"model": f"transformer=demo,text_encoder={place},vae=demo"},
        "start": {"start": {"path": place, "sha256": "00"}},
        "lora": {"loras": [{"path": place, "strength": 1, "sha256": "00"}]},
    }[what]
    picture = tmp_path / "a.png"
    picture.write_bytes(picture_with(recorded(**changes)))
    done = run("generate", "--like", picture, "--out", tmp_path / "o")
    assert done.exit_code == 2, done.output
    assert "'x.safetensors', which is neither in the working folder nor beside the picture" in done.stderr
    assert files(tmp_path) == ["a.png"]
    assert not [path for path in opened if "evil" in path]


def test_a_folder_that_is_called_like_a_model_of_the_hub_is_not_opened(tmp_path, demo_copy, monkeypatch):
    (tmp_path / "someone").mkdir()
    shutil.copytree(demo_copy, tmp_path / "someone" / "model")
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "a.png"
    picture.write_bytes(picture_with(recorded(model="someone/model")))
    done = run("generate", "--like", picture, "--out", tmp_path / "o")
    assert done.exit_code == 2, done.output
    assert "'someone/model', and here is a folder or file of that name. Say which is meant" in done.stderr


@pytest.mark.parametrize("name", ["..", ".", "", "a/../../b", "C:", "a\0b", "n" * 5000])
def test_odd_names_are_no_files(name, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(picture_with(recorded(loras=[{"name": name, "strength": 1, "sha256": "00"}])))
    done = run("generate", "--like", picture, "--out", tmp_path / "o")
    assert done.exit_code == 2, done.output
    assert "neither in the working folder nor beside" in done.stderr and done.stderr.count("\n") == 1


def test_a_start_image_is_found_by_name_and_content(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "given").mkdir()
    start = tmp_path / "first" / "s.png"
    draw(Scene("circle", "yellow", "purple", "left", "medium"), 96, 96).save(start)
    made = tmp_path / "given" / "a.png"
    assert run("generate", "a red star", "--init", start, "--steps", 3, "--out", made).exit_code == 0
    assert read_record(made).start.name == "s.png"
    assert b"first" not in made.read_bytes(), "a picture does not tell where its maker's files lie"
    lost = run("generate", "--like", made, "--out", tmp_path / "b.png")
    assert lost.exit_code == 2
    assert f"{made} was made with the start image 's.png', which is neither in the working folder" in lost.stderr
    assert "or name it with --init" in lost.stderr
    Image.new("RGB", (96, 96)).save(made.parent / "s.png")  # another one of that name, and then the right one too
    changed = run("generate", "--like", made, "--out", tmp_path / "b.png")
    assert changed.exit_code == 2 and "has changed since" in changed.stderr
    monkeypatch.chdir(tmp_path / "first")
    assert run("generate", "--like", made, "--out", tmp_path / "b.png").exit_code == 0
    named = run("generate", "--like", made, "--init", start, "--out", tmp_path / "c.png")
    assert named.exit_code == 0 and "note: " not in named.stderr
    assert len({pixels(Image.open(path)) for path in (made, tmp_path / "b.png", tmp_path / "c.png")}) == 1
    other = run("generate", "--like", made, "--init", made.parent / "s.png", "--out", tmp_path / "d.png")
    assert other.exit_code == 0 and "s.png is not the picture that" in other.stderr


def test_a_model_folder_is_recorded_by_name_and_known_again(tmp_path, demo_copy, monkeypatch):
    made = tmp_path / "a.png"
    assert run("generate", "a red star", *SIZE, "--model", demo_copy, "--out", made).exit_code == 0
    assert read_record(made).model == demo_copy.name == "model"
    assert str(demo_copy.parent).encode() not in made.read_bytes()
    assert "Model: model," in Image.open(made).info["parameters"]
    assert run("generate", "--like", made, "--out", tmp_path / "b.png").exit_code == 0, "beside the picture"
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(made, away / "a.png")
    lost = run("generate", "--like", away / "a.png", "--out", tmp_path / "c.png")
    assert lost.exit_code == 2
    assert "made with the model 'model', which is neither in" in lost.stderr and "with --model" in lost.stderr
    named = run("generate", "--like", away / "a.png", "--model", demo_copy, "--out", tmp_path / "c.png")
    assert named.exit_code == 0 and "other files" not in named.stderr
    assert pixels(Image.open(tmp_path / "b.png")) == pixels(Image.open(tmp_path / "c.png"))
    weights = demo_copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    changed = run("generate", "--like", away / "a.png", "--out", tmp_path / "d.png")
    assert changed.exit_code == 2 and f"{demo_copy} has changed since" in changed.stderr
    typed = run("generate", "--like", away / "a.png", "--model", demo_copy, "--out", tmp_path / "d.png")
    assert typed.exit_code == 0 and "was made with other files than those of" in typed.stderr


def test_parts_are_recorded_by_name(tmp_path, monkeypatch):
    vae = shutil.copytree(DEMO_FOLDER / "vae", tmp_path / "other_vae")
    made = tmp_path / "a.png"
    assert run("generate", "a red star", *SIZE, "--model", f"demo,vae={vae}", "--out", made).exit_code == 0
    assert read_record(made).model == "transformer=demo,text_encoder=demo,vae=other_vae"
    assert run("generate", "--like", made, "--out", tmp_path / "b.png").exit_code == 0
    assert pixels(Image.open(made)) == pixels(Image.open(tmp_path / "b.png"))


def test_the_demo_needs_nothing_beside_the_picture(tmp_path, demo):
    (made,) = demo.generate(dataclasses.replace(_request(), seed=4)).save(tmp_path)
    done = run("generate", "--like", made, "--out", tmp_path / "b.png")
    assert done.exit_code == 0 and "note: " not in done.stderr
    assert pixels(Image.open(made)) == pixels(Image.open(tmp_path / "b.png"))
    changed = dataclasses.replace(read_record(made), fingerprint="00")
    save_png(Image.open(made), changed, tmp_path, "c")
    told = run("generate", "--like", tmp_path / "c.png", "--out", tmp_path / "d.png")
    assert told.exit_code == 0 and "was made with other files than those of demo" in told.stderr


def _request():
    from candela import Request

    return Request("a red star", width=96, height=96, steps=1)


@pytest.mark.parametrize("mode", ["fast", "fast ", "fast x", "EXACT", "\x1b[2J"])
def test_an_unknown_mode_is_told(mode, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(picture_with(recorded(mode=mode)))
    done = run("generate", "--like", picture, "--out", tmp_path / "o")
    assert done.exit_code == 2 and "mode" in done.stderr, done.output


def test_show_names_files(tmp_path):
    record = recorded(start=dataclasses.asdict(Start("s.png", "00")), loras=[dataclasses.asdict(Lora("l", 0.5, "00"))])
    picture = Path(tmp_path / "a.png")
    picture.write_bytes(picture_with(record))
    shown = run("show", picture)
    assert shown.exit_code == 0 and "l at 0.5" in shown.stdout and "s.png" in shown.stdout
    assert RECORD["prompt"] in shown.stdout
