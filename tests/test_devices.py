"""`make test` is the same with and without a card: no test takes one that it was not given."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OTHERS = {HERE / "comfyui", HERE / "cuda"}  # ComfyUI chooses the device, and a card is what the others are about
FILES = sorted(path for path in HERE.rglob("*.py") if not OTHERS & set(path.parents))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HERE)))
def test_every_engine_is_told_its_device(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Engine.load":
            assert "device" in {keyword.arg for keyword in node.keywords}, f"{path.name}:{node.lineno}"


def test_processes_that_tests_start_see_no_card():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
