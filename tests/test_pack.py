"""The repository as ComfyUI's registry and manager see it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import candela
from candela.comfyui import OLDEST_TORCH, comfy_entrypoint

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BROUGHT_BY_COMFYUI = {"torch", "pillow", "numpy"}


def test_one_version():
    assert candela.__version__ == PROJECT["project"]["version"] == importlib.metadata.version("candela")


def test_requirements_are_the_package_s_own_without_torch():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    own = set(PROJECT["project"]["dependencies"])
    assert listed == {name for name in own if name.split(">")[0] not in BROUGHT_BY_COMFYUI}


@pytest.mark.parametrize("version", ["2.7.1+cu128", "1.13.0"])
def test_a_torch_that_is_too_old_is_told_when_comfyui_starts(version, monkeypatch):
    """requirements.txt does not name it, so pip cannot."""
    monkeypatch.setattr(importlib.metadata, "version", {"torch": version}.__getitem__)
    with pytest.raises(candela.InstallError, match=f"need torch {OLDEST_TORCH} or newer; .* has {re.escape(version)}"):
        asyncio.run(comfy_entrypoint())
    monkeypatch.setattr(importlib.metadata, "version", {"torch": f"{OLDEST_TORCH}.0a0+git"}.__getitem__)
    with pytest.raises(ImportError, match="comfy_api"):  # that comes next, and is ComfyUI's
        asyncio.run(comfy_entrypoint())


def test_the_oldest_torch_is_the_same_everywhere():
    assert f"torch>={OLDEST_TORCH}" in PROJECT["project"]["dependencies"]
    for name in ("requirements.txt", "README.md"):
        assert f"torch {OLDEST_TORCH} or" in (ROOT / name).read_text().replace("\n# ", " ").replace("\n", " "), name


def test_registry_metadata():
    comfy = PROJECT["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert comfy["requires-comfyui"].startswith(">=")


def test_every_workflow_has_its_api_form_and_a_thumbnail():
    workflows = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
    assert "workflow_z_image_reboot" in workflows and len(workflows) >= 5
    for name in workflows:
        assert (ROOT / "example_workflows" / f"{name}.jpg").is_file()
        api = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
        assert all({"class_type", "inputs"} <= node.keys() for node in api.values())


def test_a_script_beside_a_clone_imports_the_package(tmp_path):
    (tmp_path / "candela").symlink_to(ROOT)
    script = "import candela, candela.engine; from candela import Request; print(candela.__version__, candela.__file__)"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == candela.__version__ and "src" in run.stdout
