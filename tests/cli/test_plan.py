"""`candela plan` as a user meets it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from candela.cli.main import app

run = CliRunner().invoke


def test_one_screen():
    done = run(app, ["plan", "demo", "--vram", "8GB", "--size", "128x128"])
    assert done.exit_code == 0, done.output
    assert "demo, 128x128, 8 steps\n" in done.stdout
    assert "on RTX 4060 8 GB with 8.6 GB, of which 0.8 GB are kept for driver and desktop" in done.stdout
    assert "resident: peak 0.0 GB" in done.stdout and "GB/s" not in done.stdout


@pytest.mark.parametrize(("vram", "speed"), [("8GB", 12), ("12GB", 24)])
def test_how_fast_weights_come_is_said_where_it_matters(vram, speed):
    """A card that is not here has a link as wide as the usual one of its size."""
    done = run(app, ["plan", "z-image-turbo", "--vram", vram])
    assert f"weights come from main memory at {speed} GB/s (assumed, not measured)\n" in done.stdout


def test_json_is_one_object():
    done = run(app, ["plan", "demo", "--ram", "16GB", "--json"])
    answer = json.loads(done.stdout)
    assert done.exit_code == 0
    assert answer["device"] == "cpu" and answer["fits"] and answer["memory_bytes"] == 16 * 2**30
    assert {one["name"] for one in answer["components"]} == {"transformer", "text_encoder", "vae"}
    assert answer["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vram", "lots"], "--vram 'lots' is no size of memory: write 8GB"),
        (["--ram", "0GB"], "--ram '0GB' is no size of memory"),
        (["--size", "big"], "--size 'big' is no size: write WIDTHxHEIGHT"),
        (["--size", "100x100"], "width 100 is not a multiple of 16"),
    ],
)
def test_bad_input_is_told(options, said):
    done = run(app, ["plan", "demo", *options])
    assert done.exit_code == 2
    assert said in done.stderr
