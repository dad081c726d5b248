"""Command lines of bad luck, each of which ended in a traceback or in a misleading sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from candela.cli.main import app

UNLUCKY = {
    "an unset variable for --out": (["generate", "a", "--out", ""], "Invalid value for '--out': it is empty"),
    "for --init": (["generate", "a", "--init", ""], "Invalid value for '--init': it is empty"),
    "for --like": (["generate", "--like", ""], "Invalid value for '--like': it is empty"),
    "for --prompts": (["generate", "--prompts", ""], "Invalid value for '--prompts': it is empty"),
    "for --lora": (["generate", "a", "--lora", ""], "--lora '' names no file: write FILE or FILE:STRENGTH"),
    "a strength alone": (["generate", "a", "--lora", ":0.5"], "--lora ':0.5' names no file"),
    "for show": (["show", ""], "Invalid value for 'IMAGE': it is empty"),
    "for identify": (["identify", ""], "the path is empty: give a weight file, or a model's folder"),
    "for doctor": (["doctor", "--comfyui", ""], "Invalid value for '--comfyui': it is empty"),
    "a zero byte": (["show", "a\0b"], "Invalid value for 'IMAGE': no name has a zero byte in it"),
    "a folder as a LoRA": (["generate", "a", "--lora", "folder"], "folder cannot be read: Is a directory. Give a file"),
    "a user that there is not": (
        ["generate", "a", "--model", "~nobody-here"],
        "~nobody-here is not there. Give a folder",
    ),
    "likewise, to identify": (["identify", "~nobody-here/x"], "there is nothing at ~nobody-here/x"),
    "a path that there is not": (
        ["generate", "a", "--model", "a/b/c"],
        "a/b/c is not there. Give a folder in diffusers",
    ),
    "a device": (["generate", "a", "--model", os.devnull], f"{os.devnull} is neither a folder nor a weight file"),
    "a part's file": (["generate", "a", "--model", "demo,vae=no.safetensors"], "there is no file no.safetensors"),
    "an address": (
        ["generate", "a", "--model", "https://example.org/owner/name/tree/main"],
        "is an address. A model of the hub is given by its id: owner/name",
    ),
    "a link to nothing as a file": (["generate", "a", "--out", "link.png"], "link.png exists and is not overwritten"),
    "as a folder": (["generate", "a", "--out", "link"], "link is not a folder that can be written"),
    "a number beyond all": (["plan", "demo", "--vram", "9" * 400 + "GB"], "--vram '9999999999999999999999999999"),
    "bytes of another encoding": (
        ["generate", "caf\udce9"],
        "has the byte 0xE9, which is no character in utf-8, this terminal's encoding. Set LC_ALL=C.UTF-8, or put",
    ),
    "likewise, not to show": (["generate", "a", "--negative", "caf\udce9"], "has the byte 0xE9, which is no character"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="links and zero bytes")
@pytest.mark.parametrize("name", UNLUCKY)
def test_the_sentence_says_what_is_wrong(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments, message = UNLUCKY[name]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="a working folder cannot be removed there")
def test_a_working_folder_that_was_removed(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = ["sh", "-c", 'rmdir "$0"; exec "$@"', str(gone), sys.executable, "-m", "candela", "models"]
    done = subprocess.run(command, cwd=gone, capture_output=True, text=True)
    assert done.returncode == 2
    said = "candela: the working folder cannot be used (No such file or directory): change into another one\n"
    assert done.stderr == said


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write: /proc")
def test_a_bench_says_before_it_measures_that_nothing_can_be_written(monkeypatch):
    from candela.bench import suites

    monkeypatch.chdir("/proc")
    monkeypatch.setattr(suites, "quick", lambda *given, **more: pytest.fail("it has begun"))
    done = CliRunner().invoke(app, ["bench"])
    assert done.exit_code == 2
    assert "the results cannot be written into /proc/benchmarks/results: No such file or directory" in done.stderr
