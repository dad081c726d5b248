"""Which precision a card gets, from the published sizes."""

from __future__ import annotations

import os
import stat

import pytest

from candela.install.card import Card, find_card, pick_precision

# Bytes of Z-Image Turbo's files: transformer, text encoder, VAE.
VAE = 335_304_388
TURBO = {
    "bf16": {"transformer": 12_309_866_400, "text_encoder": 8_044_982_048, "vae": VAE},
    "int8": {"transformer": 6_201_001_296, "text_encoder": 5_631_994_051, "vae": VAE},
    "nvfp4": {"transformer": 4_509_509_600, "text_encoder": 3_479_416_193, "vae": VAE},
}


def card(gibibytes: float) -> Card:
    return Card("a card", int(gibibytes * 2**30), int(gibibytes * 2**30), "580.1", "8.6")


@pytest.mark.parametrize(
    ("gibibytes", "managed", "precision"),
    [(6, True, "nvfp4"), (8, True, "int8"), (12, True, "int8"), (16, True, "bf16"), (24, True, "bf16"),
     (8, False, "nvfp4"), (16, False, "nvfp4"), (24, False, "int8"), (32, False, "bf16"), (80, False, "bf16")],
)  # fmt: skip
def test_the_most_precise_that_fits(gibibytes, managed, precision):
    chosen, reason = pick_precision(TURBO, card(gibibytes), managed)
    assert chosen == precision, reason
    assert "GB" in reason


def test_without_a_card_or_a_choice():
    assert pick_precision(TURBO, None, True)[0] == "bf16"
    assert pick_precision({"nvfp4": TURBO["nvfp4"]}, card(4), True) == ("nvfp4", "the only one there is")


def test_the_driver_is_asked(tmp_path, monkeypatch):
    """A driver's tool of this name, answering as NVIDIA's does for these fields."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA GeForce RTX 3090, 24576, 23900, 580.65.06, 8.6"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_card() == Card("NVIDIA GeForce RTX 3090", 24576 << 20, 23900 << 20, "580.65.06", "8.6")
    tool.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed"\nexit 9\n')
    assert find_card() is None
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_card() is None
