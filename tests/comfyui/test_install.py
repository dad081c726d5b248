"""`candela install` and `candela uninstall` on real ComfyUIs, which are copies with a thin environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from candela.demo import check
from candela.install.comfyui import open_comfyui
from candela.install.environment import read_environment
from tests.comfyui.server import Core, Server
from tests.comfyui.test_workflows import api, prompts
from tests.install.environments import give, listing, new_environment, own_wheels, repacked, times

LACKING = "platformdirs"  # of what Candela needs, whatever the cores here have by now


@pytest.fixture
def copy(core, tmp_path, monkeypatch) -> Core:
    """The checkout without its environment: a new one sees the packages of the old one but LACKING, and can change none
    of them."""
    for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    folder = tmp_path / "ComfyUI"
    shutil.copytree(core.path, folder, ignore=shutil.ignore_patterns(".venv", ".git", "__pycache__"))
    site = new_environment(folder / ".venv")
    (theirs,) = core.path.glob(".venv/lib/python*/site-packages")
    (tmp_path / "theirs").mkdir()
    for path in theirs.iterdir():
        if not path.name.startswith(LACKING):
            (tmp_path / "theirs" / path.name).symlink_to(path)
    (site / "theirs.pth").write_text(str(tmp_path / "theirs"))
    return Core(folder, folder / ".venv" / "bin" / "python")


def candela(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "candela", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def install(core: Core, *options: str) -> subprocess.CompletedProcess[str]:
    run = candela("install", "demo", "--comfyui", core.path, "--yes", *options)
    assert run.returncode == 0, run.stderr
    return run


def torch_family(core: Core) -> dict[str, str]:
    found = read_environment(core.python).distributions
    return {name: one.version for name, one in found.items() if name.startswith(("torch", "nvidia", "triton", "numpy"))}


def test_installed_run_and_removed(copy, core, tmp_path):
    repacked(tmp_path / "index", LACKING)
    untouched = times(core.path / "custom_nodes")
    before, torch = listing(copy.path), torch_family(copy)
    assert torch["torch"]

    assert LACKING in install(copy, "--dry-run").stdout
    assert listing(copy.path) == before, "a plan changes nothing"
    install(copy)
    was = times(copy.path)
    assert "already installed" in install(copy).stdout
    assert times(copy.path) == was, "a second install touches nothing"
    assert torch_family(copy) == torch
    run = candela("uninstall", "nodes")
    assert run.returncode == 0, run.stderr
    assert listing(copy.path) == before

    install(copy)
    was = times(copy.path)
    doctor = candela("doctor", "--comfyui", copy.path, "--json")
    told = {line["name"]: line for line in json.loads(doctor.stdout)["lines"]}
    assert told["its nodes"]["state"] == "ok", told["its nodes"]
    assert told["its nodes"]["text"] == f"7 load from {copy.path / 'custom_nodes' / 'candela'}"
    assert told["its packages"]["state"] == "ok" and told["its core"]["text"] == core.version
    assert doctor.returncode == 0 and times(copy.path) == was, "the doctor changes nothing"

    _draws(copy)
    run = candela("uninstall", "nodes")
    assert run.returncode == 0 and "stays" not in run.stdout, run.stdout + run.stderr
    after = listing(copy.path / "custom_nodes")
    expected = {path: value for path, value in listing(core.path / "custom_nodes").items() if "__pycache__" not in path}
    assert {path: value for path, value in after.items() if "__pycache__" not in path} == expected
    assert LACKING not in read_environment(copy.python).distributions
    assert times(core.path / "custom_nodes") == untouched


def _draws(core: Core) -> None:
    workflow = api("workflow_z_image_reboot")
    (load,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "CandelaLoadModel")
    load["model"] = "demo"
    server = Server(core, core.path)
    try:
        run = server.run(workflow)
        assert run.ok, run.error
        (prompt,) = prompts(workflow)
        ((picture,),) = run.pictures.values()
        assert check(picture.convert("RGB"), prompt).ok
    finally:
        server.stop()


def test_a_conflict_leaves_every_byte_and_names_both_requirements(copy, tmp_path):
    own_wheels(tmp_path / "index")
    (site,) = copy.path.glob(".venv/lib/python*/site-packages")
    give(site, "transformers", "4.57.1")  # hides the newer one
    give(site, "comfyui-other", "1.2", "transformers<5")
    before, was = listing(copy.path), times(copy.path)
    run = candela("install", "demo", "--comfyui", copy.path, "--yes")
    assert run.returncode == 1
    assert (
        "comfyui-other 1.2 requires transformers<5; Candela requires transformers>=5.18; installed: transformers 4.57.1"
        in run.stderr
    )
    assert listing(copy.path) == before and times(copy.path) == was
    assert not (tmp_path / "home" / "manifest.json").exists()


EXTRA = """
mine:
    base_path: shelf
    is_default: true
    checkpoints: sd
    unet: |
        first
        second
    text_encoders: texts
old:
    clip: clips
    vae: /abs/vae/
"""
ASK = """
import json, sys
sys.argv = ["main.py"]
import folder_paths, utils.extra_config
utils.extra_config.load_extra_path_config("extra_model_paths.yaml")
kinds = sys.stdin.read().split()
print(json.dumps({kind: folder_paths.get_folder_paths(kind) for kind in kinds}))
"""


def test_model_folders_are_those_that_comfyui_uses(copy):
    (copy.path / "extra_model_paths.yaml").write_text(EXTRA)
    ours = open_comfyui(copy.path).models
    run = subprocess.run(
        [copy.python, "-c", ASK], cwd=copy.path, input=" ".join(ours), capture_output=True, text=True, check=True
    )
    theirs = json.loads(run.stdout)
    assert {kind: sorted(map(str, paths)) for kind, paths in ours.items()} == {k: sorted(v) for k, v in theirs.items()}
    firsts = {kind: str(paths[0]) for kind, paths in ours.items()}
    assert firsts == {kind: paths[0] for kind, paths in theirs.items()}
    (copy.path / "extra_model_paths.yaml").unlink()
    # Without a default of the user's own, theirs would begin with models/unet.
    assert open_comfyui(copy.path).models["diffusion_models"][0] == copy.path / "models" / "diffusion_models"
