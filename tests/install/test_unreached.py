"""`candela install --dry-run` on a machine without a network."""

from __future__ import annotations

import shutil
import socket

import pytest
from typer.testing import CliRunner

from candela.checkpoints.published import PUBLICATIONS
from candela.cli.main import app
from candela.cli.output import size
from candela.install import http


@pytest.fixture
def unreached(tmp_path, monkeypatch) -> str:
    """Of a hub where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(http, "BACKOFF", ())
    return endpoint


def install(*arguments):
    return CliRunner().invoke(app, ["install", *arguments, "--comfyui", "none"])


@pytest.mark.parametrize(
    ("model", "precision"),
    [(model, precision) for model, publication in PUBLICATIONS.items() for precision in publication.split],
)
def test_the_plan_is_of_the_published_sizes_and_says_so(unreached, tmp_path, monkeypatch, model, precision):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, 10**12))
    done = install(model, "--precision", precision, "--dry-run")
    assert done.exit_code == 0, done.output
    files = PUBLICATIONS[model].split[precision]
    for file in files:
        assert f"{size(file.bytes)}  download  {file.kind}/{file.name}" in done.stdout
    assert f"download  {size(sum(file.bytes for file in files))} of" in done.stdout
    (note,) = [line for line in done.stdout.splitlines() if line.startswith("  note")]
    assert f"sizes as published, not compared with {unreached}, which cannot be reached" in note
    assert ("the tokenizer's small files come on top" in note) == bool(PUBLICATIONS[model].tokenizer)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["z-image-turbo", "--yes"],  # to install, the hub is needed
        ["z-image-turbo", "--dry-run", "--precision", "full"],  # of whole repositories no sizes are published
        ["sdxl-turbo", "--dry-run"],
        ["someone/something", "--dry-run"],
    ],
)
def test_otherwise_it_is_an_error(unreached, arguments):
    done = install(*arguments)
    assert done.exit_code == 1
    assert "cannot be reached" in done.stderr and "download" not in done.stdout
