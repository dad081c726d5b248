"""`candela doctor` says what is wrong and what to do about it, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.checkpoints.manifest import Installed, Kept, Nodes, changing_manifest
from candela.cli.main import app
from candela.install.doctor import Line, examine
from candela.install.pack import sha256
from tests.install import environments
from tests.install.environments import REPOSITORY, times


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> Path:
    """One with no card, no ComfyUI and no models."""
    for name in ("COMFYUI_DIR", "HF_TOKEN", "HF_ENDPOINT", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


@pytest.fixture
def comfyui(tmp_path) -> Path:
    return environments.checkout(tmp_path / "ComfyUI")


def lines(comfyui: Path | None = None) -> dict[str, Line]:
    found = list(examine(comfyui))
    assert len({line.name for line in found}) == len(found)
    assert all(line.remedy for line in found if line.state == "failed")
    return {line.name: line for line in found}


def installed(folder: Path, model: str = "lumina-image-2", **changes) -> list[Path]:
    """A copy of the demo that the manifest takes for `model`."""
    shutil.copytree(DEMO_FOLDER, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with changing_manifest() as manifest:
        for path in files:
            stat = path.stat()
            manifest.files[str(path)] = Kept(
                "a/b@c",
                True,
                "good",
                "",
                stat.st_size,
                stat.st_mtime_ns,
                sha256(path),
                "2026-11-01T10:00:00Z",
                "published",
            )
        root, names = str(folder.parents[1]), tuple(map(str, files))
        entry = {"precision": "", "folder": str(folder), "files": names, "whole": True, **changes}
        manifest.models.append(Installed(model, root=root, source="hub", **entry))
    return files


def test_no_gpu_and_no_comfyui_are_warnings_with_what_to_do():
    found = lines()
    assert found["GPU"].state == "warning" and "none found" in found["GPU"].text
    assert "https://www.nvidia.com/drivers" in found["GPU"].remedy
    assert found["ComfyUI"].state == "warning" and "none found" in found["ComfyUI"].text
    assert found["ComfyUI"].remedy == "candela doctor --comfyui DIR, or set COMFYUI_DIR"
    assert found["model demo"].state == "ok" and found["torch"].state == "ok"
    assert found["plan"].text.startswith("on the CPU in float32: the demo in seconds")


def test_a_card_that_torch_cannot_use(tmp_path):
    card = tmp_path / "bin" / "nvidia-smi"
    card.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4060, 8188, 7800, 550.90.07, 8.9'\n")
    card.chmod(0o755)
    found = lines()
    assert found["GPU"] == Line(
        "GPU", "ok", "NVIDIA GeForce RTX 4060, 8.6 GB, 8.2 GB free, driver 550.90.07, compute capability 8.9"
    )
    assert found["torch"].state in ("warning", "failed") and "cannot use NVIDIA GeForce RTX 4060" in found["torch"].text
    assert found["torch"].remedy
    assert found["plan"].state == "warning" and "in nvfp4" in found["plan"].text
    assert "needs 9.5 GB, and NVIDIA GeForce RTX 4060 has 8.6" in found["plan"].text
    assert found["plan"].remedy.startswith("candela plan z-image-turbo")


def test_half_a_model(machine, comfyui):
    folder = machine / "data/models/diffusers/lumina-image-2"
    files = installed(folder)
    installed(comfyui / "models/diffusers/z-image-turbo", "z-image", whole=False, precision="bf16")
    files[-1].unlink()
    found = lines(comfyui)
    line = found["model lumina-image-2"]
    assert (line.state, line.text) == ("failed", f"incomplete: {len(files) - 1} of {len(files)} files, "
                                                 f"{files[-1].name} missing")  # fmt: skip
    assert line.remedy == "candela install lumina-image-2 --comfyui none"
    cut_off = found["model z-image bf16"]
    assert cut_off.state == "failed" and "its last file was not checked" in cut_off.text
    assert cut_off.remedy == f"candela install z-image --precision bf16 --comfyui {comfyui}"


def test_half_a_model_that_was_put_there_by_hand(comfyui):
    shutil.copytree(DEMO_FOLDER, comfyui / "models/diffusers/mine")
    (comfyui / "models/diffusers/mine/vae/diffusion_pytorch_model.safetensors").unlink()
    line = lines(comfyui)["model diffusers/mine"]
    assert line.state == "failed" and "vae" in line.text and line.remedy == "download this folder again"


def test_a_damaged_file(machine, comfyui):
    files = installed(machine / "data/models/diffusers/lumina-image-2")
    (weights,) = (path for path in files if path.match("transformer/*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    by_hand = comfyui / "models/diffusion_models/downloaded.safetensors"
    shutil.copy(weights, by_hand)
    found = lines(comfyui)
    line = found["model lumina-image-2"]
    assert line.state == "failed" and line.text.startswith("damaged: ") and str(weights) in line.text
    assert line.remedy == "candela install lumina-image-2 --comfyui none"
    line = found["model diffusion_models/downloaded.safetensors"]
    assert line.state == "failed" and str(by_hand) in line.text and line.remedy == "download this file again"


def test_a_file_that_changed_is_to_be_verified_and_one_that_was_found_damaged_to_be_fetched(machine):
    files = installed(machine / "data/models/diffusers/lumina-image-2")
    config = next(path for path in files if path.match("transformer/config.json"))
    config.write_text(config.read_text() + "\n")
    line = lines()["model lumina-image-2"]
    assert (line.state, line.text) == ("warning", "config.json was changed since it was checked")
    assert line.remedy == "candela verify lumina-image-2"
    with changing_manifest() as manifest:
        manifest.files[str(config)] = replace(manifest.files[str(config)], state="damaged")  # as verifying leaves it
    line = lines()["model lumina-image-2"]
    assert (line.state, line.text) == ("failed", "damaged: config.json is not what was published")


def test_a_whole_model_is_told_with_its_size_and_date(machine):
    folder = machine / "data/models/diffusers/lumina-image-2"
    files = installed(folder)
    line = lines()["model lumina-image-2"]
    assert line == Line(line.name, "ok", f"{len(files)} files, 0.01 GB, checked 2026-11-01, in {folder}")


def test_an_old_core(comfyui):
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    line = lines(comfyui)["its core"]
    assert (line.state, line.text) == ("failed", "0.3.40; the nodes need >=0.8.0")
    assert line.remedy == (
        f"git -C {comfyui} pull && {sys.executable} -m pip install -r {comfyui / 'requirements.txt'}"
    )


def test_a_folder_that_is_no_comfyui(tmp_path):
    line = lines(tmp_path)["ComfyUI"]
    assert line.state == "failed" and "is no ComfyUI. Looked for main.py" in line.text


def test_nodes_that_are_missing_that_do_not_load_and_that_are_there_twice(comfyui, tmp_path):
    remedy = f"candela install demo --comfyui {comfyui}"
    line = lines(comfyui)["its nodes"]
    assert (line.state, line.remedy) == ("warning", remedy)
    pack = comfyui / "custom_nodes/candela"
    pack.symlink_to(REPOSITORY)
    line = lines(comfyui)["its nodes"]  # this checkout has no program in it
    assert line.state == "failed" and "does not load: ModuleNotFoundError: No module named 'comfy" in line.text
    assert line.remedy == remedy
    shutil.copytree(REPOSITORY / "locales", comfyui / "custom_nodes/clone")
    shutil.copy(REPOSITORY / "pyproject.toml", comfyui / "custom_nodes/clone")
    line = lines(comfyui)["its nodes"]
    assert line.state == "failed" and "Candela is there 2 times" in line.text


def test_files_missing_from_the_pack(comfyui):
    pack = comfyui / "custom_nodes/candela"
    pack.mkdir()
    shutil.copy(REPOSITORY / "LICENSE", pack)
    with changing_manifest() as manifest:
        files = {"LICENSE": sha256(pack / "LICENSE"), "__init__.py": "0" * 64}
        manifest.nodes.append(Nodes(str(comfyui), str(pack), sys.executable, "0.1.0", files))
    line = lines(comfyui)["its nodes"]
    assert line.state == "failed" and f"1 of 2 files are missing from {pack}, __init__.py among them" in line.text


def test_packages_that_comfyui_s_python_lacks(comfyui, monkeypatch, tmp_path):
    site = environments.new_environment(tmp_path / "venv")
    for name, version in {**environments.BROUGHT, "transformers": "4.57.1"}.items():
        environments.give(site, name, version)
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "venv/bin/python"))
    (comfyui / "custom_nodes/candela").symlink_to(REPOSITORY)
    found = lines(comfyui)
    line = found["its packages"]
    assert line.state == "failed" and line.remedy == f"candela install demo --comfyui {comfyui}"
    assert "Candela requires transformers>=5.18 (4.57.1)" in line.text
    assert "Candela requires diffusers>=0.42 (not installed)" in line.text
    assert found["its torch"].state == "failed", "a torch of two lines cannot compute"


def test_no_python_of_comfyui_s_own(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PYTHON", "")
    line = lines(comfyui)["its Python"]
    assert line.state == "failed" and "no Python of its own was found" in line.text
    assert line.remedy.startswith("COMFYUI_PYTHON=")


def test_a_manifest_that_cannot_be_read(machine):
    (machine / "data").mkdir()
    (machine / "data/manifest.json").write_text("{")
    line = lines()["models"]
    assert line.state == "failed" and "manifest.json" in line.text


def test_nothing_is_changed_and_no_secret_is_shown(comfyui, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:password@mirror.example")
    (comfyui / "custom_nodes/candela").symlink_to(REPOSITORY)
    before = times(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--comfyui", str(comfyui)])
    assert times(tmp_path) == before
    assert "hub              mirror.example, token set" in result.output
    assert not {"hf_secret", "password"} & set(result.output.replace(":", " ").replace("@", " ").split())


def test_exit_code_and_json_say_the_same(comfyui, tmp_path):
    result = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["ok"] is True
    assert {"name", "state", "text", "remedy"} == set(told["lines"][0])
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    result = CliRunner().invoke(app, ["doctor", "--comfyui", str(comfyui), "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["ok"] is False
    assert [line["name"] for line in told["lines"] if line["state"] == "failed"] == ["its core"]
    result = CliRunner().invoke(app, ["doctor", "--comfyui", str(comfyui)])
    assert result.exit_code == 1 and "1 of 15 failed." in result.output
    assert f"failed   {'its core':16} 0.3.40" in result.output and "-> git -C" in result.output
