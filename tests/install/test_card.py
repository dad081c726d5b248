"""Which precision a card gets."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from candela.checkpoints.published import PUBLICATIONS
from candela.install.card import Card, find_card, fits, pick_precision

TURBO = PUBLICATIONS["z-image-turbo"].split


def card(gibibytes: float) -> Card:
    return Card("a card", int(gibibytes * 2**30), int(gibibytes * 2**30), "580.1", "8.6")


@pytest.mark.parametrize(
    ("gibibytes", "managed", "precision"),
    [(6, True, "nvfp4"), (8, True, "int8"), (10, True, "int8"), (12, True, "int8"), (16, True, "bf16"),
     (24, True, "bf16"), (32, True, "bf16"), (8, False, "nvfp4"), (10, False, "nvfp4"), (12, False, "nvfp4"),
     (16, False, "int8"), (24, False, "bf16"), (32, False, "bf16"), (80, False, "bf16")],
)  # fmt: skip
def test_the_most_precise_that_fits(gibibytes, managed, precision):
    """That these are what the planner would say: tests/engine/test_plan.py."""
    chosen, reason = pick_precision("z-image-turbo", TURBO, card(gibibytes), managed)
    assert chosen == precision, reason
    assert "GB" in reason and ("smallest" in reason) == (gibibytes == 8 and not managed)


SOLD = (4, 6, 8, 10, 12, 16, 24, 32)


@pytest.mark.parametrize("precision", TURBO)
def test_the_document_names_the_smallest_card_of_each(precision):
    document = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
    found = re.search(rf"^\| `{precision}` \| .* GB \| (\d+) GB card \| (\d+) GB card \|$", document, re.MULTILINE)
    assert found
    for managed, gibibytes in zip((True, False), map(int, found.groups())):
        smallest = next(size for size in SOLD if fits("z-image-turbo", precision, card(size), managed))
        assert gibibytes == smallest, managed


def test_without_a_card_or_a_choice():
    assert pick_precision("z-image-turbo", TURBO, None, True)[0] == "bf16"
    assert pick_precision("z-image-turbo", ["nvfp4"], card(4), True) == ("nvfp4", "the only one there is")


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
