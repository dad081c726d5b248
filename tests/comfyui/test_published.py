"""Z-Image Turbo's published files in ComfyUI's own folders, whoever put them there, are `z-image-turbo`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from candela.checkpoints.published import PUBLICATIONS
from tests.comfyui import graphs
from tests.comfyui.conftest import REPOSITORY
from tests.comfyui.server import Server
from tests.comfyui.test_workflows import rgb
from tests.install.publish import publish_turbo


@pytest.fixture(scope="module")
def by_hand(core, tmp_path_factory):
    """A server whose user downloaded the three files with a browser."""
    base = tmp_path_factory.mktemp(f"by-hand-{core.version}")
    publish_turbo(base / "hub")
    for file in PUBLICATIONS["z-image-turbo"].split["bf16"]:
        folder = base / "models" / file.kind / ("mine" if file.kind == "vae" else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / "hub" / file.repository / file.path, folder / file.name)
    # ComfyUI's own copy of Qwen's vocabulary has too many words for the demo's text encoder.
    tokenizer = base / "models" / "text_encoders" / "qwen_3_4b_tokenizer"
    shutil.copytree(base / "hub" / "Tongyi-MAI/Z-Image-Turbo/tokenizer", tokenizer)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "candela").symlink_to(REPOSITORY)
    server = Server(core, base, environment={"CANDELA_HOME": str(base / "data")})
    yield server
    server.stop()


def test_the_workflow_runs_as_it_is_shipped(by_hand):
    graph = json.loads((REPOSITORY / "workflows" / "api" / "workflow_z_image_reboot.json").read_text())
    models = [node["inputs"]["model"] for node in graph.values() if node["class_type"] == "CandelaLoadModel"]
    assert models == ["z-image-turbo"]
    plain = by_hand.run(graphs.text_to_image(seed=7))
    assert plain.ok, plain.error
    run = by_hand.run(graphs.text_to_image(model="z-image-turbo", seed=7))
    assert run.ok, run.error
    assert np.array_equal(rgb(run.pictures["5"][0]), rgb(plain.pictures["5"][0]))


def test_one_of_its_files_may_be_another(by_hand):
    graph = graphs.text_to_image(model="z-image-turbo", seed=7)
    graph["1"]["inputs"]["vae"] = "mine/ae.safetensors"
    run = by_hand.run(graph)
    assert run.ok, run.error


def test_without_one_of_them_it_says_how_to_get_it(by_hand):
    (by_hand.base / "models" / "vae" / "mine" / "ae.safetensors").unlink()
    run = by_hand.run(graphs.text_to_image(model="z-image-turbo", seed=8))
    assert not run.ok
    assert "candela install z-image-turbo" in run.error and "not on this machine" in run.error
