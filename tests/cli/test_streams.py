"""Pipes, devices and files without end, in place of what is read; and folders without end to write into."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.test_generate import CANDELA, files, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices that have names")


@pytest.mark.parametrize("option", ["--init", "--prompts", "--like", "--lora", "--model"])
@pytest.mark.parametrize("what", ["pipe", "zero", "folder"])
def test_what_is_no_file_is_told_at_once(option, what, tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    path = {"pipe": pipe, "zero": "/dev/zero", "folder": folder}[what]
    done = run("generate", "a red star", option, path, "--out", tmp_path / "o")
    assert done.exit_code == 2, done.output
    assert str(path) in done.stderr and done.stderr.count("\n") == 1
    assert files(tmp_path) == ["folder", "pipe"]


def test_a_prompts_file_has_a_limit(tmp_path):
    path = tmp_path / "prompts.txt"
    with open(path, "wb") as file:
        file.truncate(50_000_000)
    done = run("generate", "--prompts", path, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert f"the prompts file {path} is longer than 4000000 bytes: split it" in done.stderr
    path.write_text("a" * 3_000_000)
    done = run("generate", "--prompts", path, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "a prompt of 3000000 characters is too long: the limit is 100000" in done.stderr
    assert files(tmp_path) == ["prompts.txt"]


def test_a_picture_to_start_from_has_a_limit(tmp_path):
    from PIL import Image

    path = tmp_path / "large.png"
    Image.new("1", (8200, 8192)).save(path)
    for option in ("--init", "--like"):
        done = run("generate", "a red star", option, path, "--out", tmp_path / "o")
        assert done.exit_code == 2
        assert "its 8200x8192 pixels are more than 67108864; make it smaller first" in done.stderr


def test_pictures_of_formats_that_run_programs_are_not_opened(tmp_path):
    """PIL starts Ghostscript for PostScript."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\n")
    done = run("generate", "a red star", "--init", path, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "not of a format that is read: PNG, JPEG, WEBP, GIF, BMP, TIFF" in done.stderr


def test_folders_below_one_another_by_the_thousand(tmp_path):
    """More than Python goes down by itself."""
    deep = tmp_path.joinpath(*["d"] * 1500)
    try:
        done = run("generate", "a red star", "--width", 96, "--height", 96, "--steps", 1, "--out", deep / "a.png")
        assert done.exit_code == 0, done.output
        assert done.stdout == f"{deep / 'a.png'}\n"
    finally:  # nor does what cleans up after tests
        for folder in (deep, *deep.parents[:1499]):
            if folder.is_dir():
                (folder / "a.png").unlink(missing_ok=True)
                folder.rmdir()


@pytest.mark.parametrize(
    ("surroundings", "limit", "code", "words"),
    [
        ({"PYTHONOPTIMIZE": "2"}, None, 2, "runs without docstrings (PYTHONOPTIMIZE=2 or -OO)"),
        ({"TORCH_LOGS": "junk"}, None, 2, "TORCH_LOGS is 'junk', which torch does not know: unset it"),
        ({}, 500_000_000, 1, "0.50 GB of address space; torch alone takes 1.0"),
    ],
    ids=["docstrings", "logs", "address space"],
)
def test_surroundings_in_which_torch_cannot_be_are_told(surroundings, limit, code, words, tmp_path):
    def limited() -> None:
        if limit:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [*CANDELA, "generate", "a", "--out", str(tmp_path / "o")],
        capture_output=True, text=True, env=os.environ | surroundings, preexec_fn=limited,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert files(tmp_path) == []
