"""Output that goes nowhere: one sentence and exit code 1, or silence where the reader has left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.cli.main import main

WEIGHTS = DEMO_FOLDER / "vae" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def picture(tmp_path_factory, demo) -> Path:
    from candela import Request

    (path,) = demo.generate(Request("a red star", steps=1)).save(tmp_path_factory.mktemp("made"))
    return path


COMMANDS = {
    "generate": ["generate", "a red star", "--steps", "1"],
    "generate --json": ["generate", "a red star", "--steps", "1", "--json"],
    "generate --json, refused": ["generate", "a", "--width", "3", "--json"],
    "show": ["show", "PICTURE"],
    "identify": ["identify", str(WEIGHTS)],
    "identify --json": ["identify", str(WEIGHTS), "--json"],
    "plan": ["plan", "demo"],
    "models": ["models"],
    "verify": ["verify"],
    "install": ["install", "demo", "--dry-run", "--comfyui", "none"],
    "--version": ["--version"],
    "--help": ["--help"],
}


def run(monkeypatch, stream, name, picture, tmp_path):
    """-> what `main` exits with, its stdout being `stream`."""
    arguments = [str(picture) if word == "PICTURE" else word for word in COMMANDS[name]]
    if name.startswith("generate"):
        arguments += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["candela", *arguments])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(monkeypatch, capsys, name, picture, tmp_path):
    with open("/dev/full", "w") as full:
        assert run(monkeypatch, full, name, picture, tmp_path) == 1
    said = "candela: standard output cannot be written: No space left on device. Send it elsewhere\n"
    assert capsys.readouterr().err == said
    assert name != "generate" or len(list((tmp_path / "out").iterdir())) == 1, "what was made is kept"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_left(monkeypatch, capsys, name, picture, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    pipe = open(writer, "w")  # noqa: SIM115  (what is left in it cannot be written)
    assert run(monkeypatch, pipe, name, picture, tmp_path) == 1
    with contextlib.suppress(OSError):
        pipe.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["models"], ["generate", "a", "--json"]])
def test_closed_from_the_start(arguments, tmp_path):
    """In a shell: `candela ... >&-`. Nothing is begun."""
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "candela", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "candela: standard output is closed, so there is nowhere to print to. Send it to a file, or to /dev/null\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["2>&- <&-", "2>/dev/full"])
def test_messages_that_go_nowhere_stop_nothing(where, tmp_path):
    """And do not get among the answers."""
    command = [
        "sh",
        "-c",
        f'"$@" {where}',
        "sh",
        sys.executable,
        "-m",
        "candela",
        "generate",
        "a",
        "--width",
        "3",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith('{"error"') and done.stdout.count("\n") == 1
    assert done.stderr == ""
