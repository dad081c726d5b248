"""The shell's door, called as a user calls it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from candela import Engine, Request, read_record
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.cli.main import app
from candela.demo import Scene, draw
from tests.conftest import STAR, pixels

CANDELA = [sys.executable, "-m", "candela"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def files(folder: Path) -> list[str]:
    """Everything below `folder`, folders too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_the_shell_makes_the_pixels_that_python_makes(tmp_path, star_pixels):
    shell = subprocess.run(
        [*CANDELA, "generate", STAR.prompts[0], "--seed", "15", "--out", str(tmp_path), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(shell.stdout)
    assert shell.stdout.count("\n") == 1
    (image,) = answer["images"]
    assert pixels(Image.open(image["path"])) == star_pixels
    assert (answer["model"], image["seed"]) == ("demo", 15)
    assert set(answer["seconds"]) == {"load", "encode", "denoise", "decode", "total"}
    assert answer["seconds"]["total"] >= answer["seconds"]["denoise"] > 0
    assert answer["peak_bytes"] > 10_000_000


def test_several_prompts_seeds_and_counts(tmp_path, star_pixels):
    done = run("generate", "a blue circle", STAR.prompts[0], "--seed", 13, "--count", 2, "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    images = json.loads(done.stdout)["images"]
    assert [i["seed"] for i in images] == [13, 14, 15, 16]
    assert pixels(Image.open(images[2]["path"])) == star_pixels, "picture k is that of seed + k alone"
    assert len(files(tmp_path)) == 4


def test_prompts_from_a_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue square  \n", encoding="utf-8")
    done = run("generate", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "o", "--steps", 1)
    assert done.exit_code == 0, done.output
    assert files(tmp_path / "o") == ["a-blue-square-1.png", "a-red-circle-0.png"]
    assert done.stdout.splitlines() == [str(tmp_path / "o" / n) for n in ("a-red-circle-0.png", "a-blue-square-1.png")]


def test_nothing_is_overwritten(tmp_path):
    for _ in range(3):
        assert run("generate", "a red circle", "--steps", 1, "--out", tmp_path).exit_code == 0
    assert files(tmp_path) == ["a-red-circle-0-2.png", "a-red-circle-0-3.png", "a-red-circle-0.png"]
    named = tmp_path / "mine.png"
    assert run("generate", "a red circle", "--steps", 1, "--out", named).exit_code == 0
    before = named.read_bytes()
    again = run("generate", "a red circle", "--steps", 1, "--out", named)
    assert again.exit_code == 2
    assert "mine.png exists and is not overwritten" in again.stderr
    assert named.read_bytes() == before


def test_fast_mode_needs_a_gpu_and_like_brings_it_back_on_any(tmp_path):
    """What a GPU computed in 8 bits is computed in the same 8 bits here."""
    refused = run("generate", "a red star", "--fast", "--out", tmp_path / "none")
    assert (refused.exit_code, files(tmp_path)) == (2, [])
    assert "fast mode needs an NVIDIA GPU of compute capability 8.0 or more" in refused.stderr
    engine = Engine.load("demo", fast="int8", device="cpu")
    (made,) = engine.generate(Request("a red star", width=96, height=96, steps=2, seed=3)).save(tmp_path)
    for name, mode, options in (("same", "fast int8", []), ("other", "exact", ["--exact"])):
        again = run("generate", "--like", made, *options, "--out", tmp_path / f"{name}.png")
        assert again.exit_code == 0, again.output
        assert read_record(tmp_path / f"{name}.png").mode == mode
    first, same, other = (pixels(Image.open(path)) for path in (made, tmp_path / "same.png", tmp_path / "other.png"))
    assert first == same != other
    assert "mode:            fast int8" in run("show", made).stdout


def test_a_named_file_for_several_pictures_is_numbered(tmp_path):
    assert run("generate", "a red circle", "--count", 2, "--steps", 1, "--out", tmp_path / "x.png").exit_code == 0
    assert files(tmp_path) == ["x-1.png", "x-2.png"]


def test_the_png_carries_the_request_and_like_makes_it_again(tmp_path):
    done = run(
        "generate", "a green star, black background", "--negative", "red, “quoted”", "--guidance", 1.5,
        "--width", 96, "--height", 160, "--steps", 5, "--seed", 11, "--out", tmp_path / "one.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = read_record(tmp_path / "one.png")
    assert (record.prompt, record.negative_prompt) == ("a green star, black background", "red, “quoted”")
    assert (record.width, record.height, record.steps, record.guidance, record.seed) == (96, 160, 5, 1.5, 11)
    assert record.cfg == 2.5
    text = Image.open(tmp_path / "one.png").info["parameters"]
    assert text.splitlines()[0] == "a green star, black background"
    assert text.splitlines()[1] == "Negative prompt: red, “quoted”"
    assert "Steps: 5, Sampler: Euler, CFG scale: 2.5, Seed: 11, Size: 96x160, Model: demo" in text
    again = run("generate", "--like", tmp_path / "one.png", "--out", tmp_path / "two.png")
    assert again.exit_code == 0, again.output
    assert pixels(Image.open(tmp_path / "two.png")) == pixels(Image.open(tmp_path / "one.png"))
    other = run("generate", "--like", tmp_path / "one.png", "--seed", 12, "--out", tmp_path / "three.png")
    assert other.exit_code == 0
    assert read_record(tmp_path / "three.png").seed == 12
    assert pixels(Image.open(tmp_path / "three.png")) != pixels(Image.open(tmp_path / "one.png"))
    shown = run("show", tmp_path / "one.png")
    assert shown.exit_code == 0
    for part in ("a green star, black background", "96", "160", "1.5", "11", "demo"):
        assert part in shown.stdout


def test_like_says_when_the_machine_differs(tmp_path):
    from candela.record import save_png

    assert run("generate", "a red star", "--out", tmp_path / "one.png").exit_code == 0
    record = dataclasses.replace(read_record(tmp_path / "one.png"), dtype="bfloat16", device="cuda")
    save_png(Image.open(tmp_path / "one.png"), record, tmp_path, "gpu")
    done = run("generate", "--like", tmp_path / "gpu.png", "--out", tmp_path / "two.png")
    assert done.exit_code == 0
    assert (
        "was made in bfloat16 on cuda with candela 0.1.0; in float32 on cpu with candela 0.1.0 the pixels may differ"
        in done.stderr
    )


def test_image_to_image_and_like_across_folders(tmp_path, monkeypatch):
    start = tmp_path / "start.png"
    draw(Scene("circle", "yellow", "purple", "left", "medium"), 128, 96).save(start)
    monkeypatch.chdir(tmp_path)
    done = run("generate", "a pink circle", "--init", "start.png", "--strength", 0.5, "--out", "a.png")
    assert done.exit_code == 0, done.output
    record = read_record("a.png")
    assert (record.width, record.height, record.strength) == (128, 96, 0.5)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert run("generate", "--like", "../a.png", "--out", "b.png").exit_code == 0
    assert pixels(Image.open("b.png")) == pixels(Image.open("../a.png"))
    draw(Scene("circle", "red", "purple", "left", "medium"), 128, 96).save(start)
    changed = run("generate", "--like", "../a.png", "--out", "c.png")
    assert changed.exit_code == 2
    assert "has changed since" in changed.stderr


def test_a_start_image_of_any_kind_is_what_it_looks_like(tmp_path, monkeypatch):
    """16-bit grey, transparency, and a telephone's orientation: the pixels that a viewer shows, on white."""
    import numpy as np

    from candela.cli.generate import read_start

    grey = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    shown = np.asarray(read_start(tmp_path / "grey.png"))
    assert np.abs(shown[..., 0].astype(int) - grey // 257).max() <= 1
    Image.new("RGBA", (96, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_start(tmp_path / "clear.png").getextrema() == ((255, 255),) * 3
    turned = Image.fromarray(grey[:, :64])
    exif = turned.getexif()
    exif[0x0112] = 6  # 90 degrees clockwise
    turned.crop((0, 0, 64, 32)).save(tmp_path / "turned.png", exif=exif)
    assert read_start(tmp_path / "turned.png").size == (32, 64)
    made = run("generate", "a star", "--init", tmp_path / "clear.png", "--steps", 2, "--out", tmp_path / "made.png")
    assert made.exit_code == 0, made.output
    assert run("generate", "--like", tmp_path / "made.png", "--out", tmp_path / "again.png").exit_code == 0
    Image.new("RGBA", (96, 64), (255, 0, 0, 9)).save(tmp_path / "clear.png")
    assert "has changed since" in run("generate", "--like", tmp_path / "made.png", "--out", tmp_path / "no.png").stderr


@pytest.mark.parametrize(
    ("strength", "steps", "note"),
    [
        (
            0.9,
            8,
            "strength 0.9 leaves out none of 8 steps, so the start has no effect: with 8 steps, use at most 0.875",
        ),
        (
            0.9,
            9,
            "strength 0.9 leaves out none of 9 steps, so the start has no effect: with 9 steps, use at most 0.888",
        ),
        (0.888, 9, None),
        (0.9, 1, "strength 0.9 leaves out none of 1 steps, so the start has no effect: take more steps"),
        (0.05, 8, "strength 0.05 of 8 steps is less than a step: one runs, as with strength 0.125"),
        (0.875, 8, None),
        (0.125, 8, None),
        (1, 8, None),
    ],
)
def test_a_strength_that_does_something_else_than_it_says_is_told(tmp_path, strength, steps, note):
    draw(Scene("circle", "yellow", "purple", "left", "medium"), 64, 64).save(tmp_path / "start.png")
    done = run(
        "generate", "a star", "--count", 2, "--init", tmp_path / "start.png", "--strength", strength, "--steps", steps,
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr == (f"candela: note: {note}\n" if note else "")


def test_pictures_saved_from_python_can_be_made_again(tmp_path, demo):
    (path,) = demo.generate(STAR).save(tmp_path)
    assert run("generate", "--like", path, "--out", tmp_path / "again.png").exit_code == 0
    assert pixels(Image.open(tmp_path / "again.png")) == pixels(Image.open(path))
    latents = demo.encode_image(Image.open(path), 128, 128)
    (path,) = demo.generate(Request("a red star", latents=latents, strength=0.5)).save(tmp_path)
    refused = run("generate", "--like", path, "--out", tmp_path / "no.png")
    assert refused.exit_code == 2
    assert "latents or a mask" in refused.stderr


def test_models_lists_the_demo_and_how_to_get_others(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    broken = tmp_path / "models--someone--broken" / "snapshots" / "abc"
    broken.mkdir(parents=True)
    (broken / "model_index.json").write_text("{")
    done = run("models")
    assert done.exit_code == 0, done.output
    assert "demo" in done.stdout
    assert "candela install NAME" in done.stdout and "z-image-turbo " in done.stdout
    assert "someone/broken" in done.stdout
    assert "not readable JSON" in " ".join(done.stdout.split())


def test_ctrl_c_stops_within_a_step_and_keeps_finished_pictures(tmp_path):
    process = subprocess.Popen(
        [*CANDELA, "generate", "a red circle", "--count", "4000", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    printed = [process.stdout.readline().strip()]
    process.send_signal(signal.SIGINT)
    rest, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    printed += rest.split("\n")[:-1]
    assert len(printed) < 400  # what takes minutes was not gone on with
    assert files(tmp_path) == sorted(Path(p).name for p in printed)
    for path in printed:
        Image.open(path).load()
    assert f"{len(printed)} finished and kept" in messages


def test_json_tells_errors_too():
    done = run("generate", "a", "--width", "100", "--json")
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "InvalidRequest"
    assert "100" in error["message"]


def test_a_model_that_makes_nan_exits_with_1_and_writes_nothing(tmp_path, demo_copy):
    from safetensors.torch import load_file, save_file

    file = demo_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["layers.0.feed_forward.w2.weight"].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    done = run("generate", "a", "--model", demo_copy, "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert "NaN or infinite values" in done.stderr
    assert files(tmp_path / "o") == []


def test_exit_codes_tell_bad_input_from_work_that_failed():
    from candela import GenerationError, InvalidRequest, ModelNotFound, OutOfMemory
    from candela.cli.output import exit_code

    assert [exit_code(error("x")) for error in (GenerationError, OutOfMemory)] == [1, 1]
    assert [exit_code(error("x")) for error in (InvalidRequest, ModelNotFound)] == [2, 2]


def test_a_failure_on_the_way_keeps_and_reports_what_is_done(tmp_path):
    code = (
        "import candela.cli.generate as g\nfrom candela.errors import OutputError\nfrom candela.cli.main import app\n"
        "save = g.save_png\n"
        "def full(image, record, *rest):\n"
        "    if record.seed == 2: raise OutputError('cannot write: no space left')\n"
        "    return save(image, record, *rest)\n"
        "g.save_png = full; app()"
    )
    arguments = ["generate", "a red circle", "--count", "5", "--out", str(tmp_path / "o"), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [i["seed"] for i in report["images"]] == [0, 1]
    assert report["error"] == {"type": "OutputError", "message": "cannot write: no space left"}
    assert len(files(tmp_path / "o")) == 2


def test_paths_go_into_a_pipe_while_progress_goes_to_the_terminal(tmp_path):
    """stderr is a terminal here, stdout a pipe, as in `candela generate ... | cat`."""
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        # Of so many steps that the bar, which is drawn ten times a second, is seen on the way on a fast machine too.
        [*CANDELA, "generate", "a red circle", "--count", "2", "--steps", "60", "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=inside, text=True,
    )  # fmt: skip
    os.close(inside)
    seen = b""  # read at once: a terminal that nobody reads stops the program when it is full
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while chunk := os.read(terminal, 4096):
            seen += chunk
    written, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert written.splitlines() == [str(tmp_path / f"a-red-circle-{k}.png") for k in (0, 1)]
    assert b"picture 1/2" in seen
    assert b"s/step" in seen


@pytest.fixture
def bad(tmp_path, demo_copy):
    """Arguments that are wrong, by name; paths are made here."""
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "file").write_text("in the way")
    Image.new("RGB", (100, 64)).save(tmp_path / "odd.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "none.txt").write_text("\n\n")
    weights = demo_copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    partial = shutil.copytree(DEMO_FOLDER, tmp_path / "partial")
    shutil.rmtree(partial / "text_encoder")
    pickled = shutil.copytree(DEMO_FOLDER, tmp_path / "pickled")
    (pickled / "vae" / weights.name).write_bytes(b"PK\x03\x04" + b"0" * 500)
    return {
        "size": (["a", "--width", 130], "width 130 is not a multiple of 16: use 128 or 144"),
        "height": (["a", "--height", 8], "height 8 is not a multiple of 16: use 16"),
        "zero": (["a", "--width", 0], "width 0 is out of range"),
        "absurd": (["a", "--width", 1 << 20], "width 1048576 is out of range: 1 to 16384"),
        "too long": (["a", "--width", 8208], "16 to 8192 pixels a side"),
        "steps": (["a", "--steps", 0], "steps 0 is out of range: 1 to 1000"),
        "seed": (["a", "--seed", -1], "seed -1 is out of range: 0 to 18446744073709551615"),
        "seed high": (["a", "--seed", 1 << 64], "seed 18446744073709551616 is out of range"),
        "count": (["a", "--count", 0], "count 0 is out of range: 1 to"),
        "guidance": (["a", "--guidance", -1], "guidance -1 is out of range"),
        "no prompt": ([], "no prompt: give at least one"),
        "empty file": (["--prompts", tmp_path / "none.txt"], "no prompt"),
        "no file": (["--prompts", tmp_path / "absent.txt"], "absent.txt cannot be read"),
        "unknown model": (["a", "--model", "deno"], "no model 'deno': did you mean demo"),
        "no index": (["a", "--model", empty], "has no model_index.json"),
        "truncated": (["a", "--model", demo_copy], "diffusion_pytorch_model.safetensors is truncated"),
        "missing component": (["a", "--model", partial], "the component 'text_encoder' is missing"),
        "not safetensors": (["a", "--model", pickled], "it is a zip archive (perhaps a PyTorch pickle)"),
        "no model": (["a", "--model", ""], "no model ''"),
        "typo in an id": (["a", "--model", "Tongyi-MAI/Z-Image-Trubo"], "did you mean Tongyi-MAI/Z-Image-Turbo?"),
        "other format": (["a", "--out", tmp_path / "x.jpg"], "pictures are written as PNG"),
        "name too long": (["a", "--out", tmp_path / ("x" * 300)], "cannot write into"),
        "prompt": (["q7#" * 400], "the limit is 512"),
        "second prompt": (["a red star", "q7#" * 400], "the limit is 512"),
        "init": (["a", "--init", tmp_path / "text.png"], "text.png cannot be read as a picture"),
        "no init": (["a", "--init", tmp_path / "absent.png"], "absent.png does not exist"),
        "odd init": (["a", "--init", tmp_path / "odd.png"], "start image is 100x64"),
        "strength": (["a", "--strength", 0.5], "--strength 0.5 needs a picture"),
        "strength 2": (["a", "--init", tmp_path / "plain.png", "--strength", 2], "strength 2 is out of range: 0 to 1"),
        "like": (["--like", tmp_path / "plain.png"], "carries no Candela record"),
        "no like": (["--like", tmp_path / "absent.png"], "there is no file"),
    }


NAMES = [
    "size",
    "height",
    "zero",
    "absurd",
    "too long",
    "steps",
    "seed",
    "seed high",
    "count",
    "guidance",
    "no prompt",
    "empty file",
    "no file",
    "unknown model",
    "no index",
    "truncated",
    "missing component",
    "not safetensors",
    "no model",
    "typo in an id",
    "other format",
    "name too long",
    "prompt",
    "second prompt",
    "init",
    "no init",
    "odd init",
    "strength",
    "strength 2",
    "like",
    "no like",
]


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_says_why_and_writes_nothing(bad, name, tmp_path):
    arguments, message = bad[name]
    before = files(tmp_path)
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path / "out"]
    done = run("generate", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.startswith("candela: ")
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == before


def test_the_names_cover_the_table(bad):
    assert set(NAMES) == set(bad)


@pytest.mark.parametrize("out", ["file", "file/below", "file/below.png"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    done = run("generate", "a", "--out", tmp_path / out)
    assert done.exit_code == 2
    assert "cannot write into" in done.stderr
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write: /proc")
def test_a_folder_without_permission():
    done = run("generate", "a", "--out", "/proc/candela")
    assert done.exit_code == 2
    assert "cannot write into /proc/candela" in done.stderr
