"""Every shipped workflow runs, and its picture is right."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from candela.demo import check
from tests.comfyui import graphs
from tests.comfyui.conftest import REPOSITORY
from workflows.to_api import to_api

NAMES = sorted(path.stem for path in (REPOSITORY / "example_workflows").glob("*.json"))


def api(name: str) -> dict:
    return json.loads((REPOSITORY / "workflows" / "api" / f"{name}.json").read_text())


def prompts(workflow: dict) -> set[str]:
    return {node["inputs"]["prompt"] for node in workflow.values() if isinstance(node["inputs"].get("prompt"), str)}


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_workflow_runs_and_its_pictures_are_right(server, name):
    workflow = api(name)
    run = server.run(workflow)
    assert run.ok, run.error
    (prompt,) = prompts(workflow)
    pictures = [picture for group in run.pictures.values() for picture in group]
    assert len(pictures) == (3 if name == "three_model_comparison" else 1)
    for picture in pictures:
        assert check(picture.convert("RGB"), prompt).ok, check(picture.convert("RGB"), prompt)


@pytest.mark.parametrize("name", NAMES)
def test_api_file_is_what_the_script_makes_of_the_ui_file(server, name):
    ui = json.loads((REPOSITORY / "example_workflows" / f"{name}.json").read_text())
    assert api(name) == to_api(ui, server.get_json("/object_info"))


@pytest.mark.parametrize("name", NAMES)
def test_workflow_is_in_the_template_browser_with_a_thumbnail(server, name):
    assert name in server.get_json("/workflow_templates")["candela"]
    thumbnail = server.get(f"/api/workflow_templates/candela/{name}.jpg")
    assert thumbnail[:3] == b"\xff\xd8\xff"


def test_the_same_pixels_as_from_the_shell(server, core, base, tmp_path):
    workflow = api("workflow_z_image_reboot")
    (sampler,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "CandelaSampler")
    assert sampler["seed"] == 7
    run = server.run(workflow)
    assert run.ok, run.error
    ((picture,),) = run.pictures.values()
    (prompt,) = prompts(workflow)
    model = base / "models" / "diffusers" / "z-image-turbo"
    subprocess.run(
        [core.python, "-m", "candela", "generate", prompt, "--model", model, "--seed", "7", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        check=True,
        capture_output=True,
    )
    (file,) = tmp_path.glob("*.png")
    assert np.array_equal(rgb(picture), rgb(Image.open(file)))


def test_within_rounding_of_this_python_s_torch(server, demo):
    from candela import Request

    run = server.run(graphs.text_to_image(seed=7))
    ours = demo.generate(Request(graphs.STAR, seed=7)).images[0]
    assert abs(rgb(run.pictures["5"][0]) - rgb(ours)).max() <= 1


def test_a_workflow_of_the_ancestor_s_node_runs(server):
    """The graph of its README: an empty latent, the node, VAE Decode; the VAE from our Load node."""
    workflow = {
        "1": {
            "class_type": "LuminaDiffusersNode",
            "inputs": {
                "model_path": "Alpha-VLLM/Lumina-Next-SFT-diffusers",
                "prompt": "A stone cup with carvings",
                "negative_prompt": "blur",
                "num_inference_steps": 3,
                "guidance_scale": 4.0,
                "seed": 42,
                "batch_size": 2,
                "scaling_watershed": 0.3,
                "proportional_attn": True,
                "clean_caption": True,
                "max_sequence_length": 256,
                "use_time_shift": False,
                "t_shift": 4,
                "strength": 1.0,
                "latents": ["2", 0],
            },
        },
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 96, "batch_size": 2}},
        "3": {
            "class_type": "CandelaLoadModel",
            "inputs": {"model": "Alpha-VLLM/Lumina-Next-SFT-diffusers", "precision": "auto"},
        },
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["3", 1]}},
        "5": graphs.save("4"),
    }
    run = server.run(workflow)
    assert run.ok, run.error
    first, second = run.pictures["5"]
    assert first.size == (64, 96)
    assert abs(rgb(first) - rgb(second)).max() > 10, "two seeds, two pictures"


def test_the_ancestor_s_strength_needs_a_picture(server):
    """An empty latent with strength below 1 ran there, so it runs here."""
    inputs = {
        "model_path": "demo", "prompt": graphs.STAR, "negative_prompt": "", "num_inference_steps": 4,
        "guidance_scale": 0.1, "seed": -1, "batch_size": 1, "scaling_watershed": 0.3, "proportional_attn": True,
        "clean_caption": True, "max_sequence_length": 256, "use_time_shift": False, "t_shift": 4, "strength": 0.6,
        "latents": ["2", 0],
    }  # fmt: skip
    workflow = {
        "1": {"class_type": "LuminaDiffusersNode", "inputs": inputs},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "3": {"class_type": "CandelaLoadModel", "inputs": {"model": "demo", "precision": "auto"}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["3", 1]}},
        "5": graphs.save("4"),
    }
    before = len(server.log)
    run = server.run(workflow)
    assert run.ok, run.error
    assert "strength has no effect" in server.log[before:] and "seed " in server.log[before:]


def test_the_all_in_one_node_equals_the_four(server):
    settings = {"width": 0, "height": 0, "batch_size": 1, "seed": 7, "steps": 0, "guidance": -1, "denoise": 1.0}
    workflow = {
        "1": {
            "class_type": "LuminaNextDiffusersWrapper",
            "inputs": {"model": "demo", "prompt": graphs.STAR, "negative_prompt": "", **settings},
        },
        "2": graphs.save("1"),
    }
    whole = server.run(workflow)
    assert whole.ok, whole.error
    before = len(server.log)
    workflow["1"]["inputs"]["seed"] = 8
    assert server.run(workflow).ok
    assert "[Candela] sampled" in server.log[before:]
    assert "[Candela] encoded" not in server.log[before:] and "[Candela] loaded" not in server.log[before:]
    parts = server.run(graphs.text_to_image())
    assert np.array_equal(rgb(whole.pictures["2"][0]), rgb(parts.pictures["5"][0]))


def test_a_shim_folder_serves_an_installed_package(core, tmp_path):
    """`pip install .` into ComfyUI's Python and one file in custom_nodes; here the path stands in for pip."""
    from tests.comfyui.server import Server

    shim = tmp_path / "custom_nodes" / "candela"
    shim.mkdir(parents=True)
    (shim / "__init__.py").write_text("from candela.comfyui import WEB_DIRECTORY, comfy_entrypoint\n")
    server = Server(core, tmp_path, environment={"PYTHONPATH": str(REPOSITORY / "src")})
    try:
        run = server.run(graphs.text_to_image())
        assert run.ok, run.error
        assert check(run.pictures["5"][0].convert("RGB"), graphs.STAR).ok
        assert b"# " in server.get("/extensions/candela/docs/CandelaSampler.md")
    finally:
        server.stop()


def test_help_pages_and_locales(server):
    nodes = {name for name, info in server.get_json("/object_info").items() if info["category"] == "Candela"}
    assert len(nodes) == 7
    translations = server.get_json("/i18n")
    for node in nodes:
        assert len(server.get(f"/extensions/candela/docs/{node}.md")) > 300
        definition = server.get_json(f"/object_info/{node}")[node]
        shown = {name for group in definition["input"].values() for name in group}
        for language in ("en", "fr"):
            entry = translations[language]["nodeDefs"][node]
            assert shown == set(entry["inputs"]), f"{language}: {node}"
        english = translations["en"]["nodeDefs"][node]
        assert english["display_name"] == definition["display_name"]
        assert english["description"] == definition["description"]


def test_every_widget_has_a_tooltip(server):
    definitions = server.get_json("/object_info")
    ours = [d for d in definitions.values() if d["category"] == "Candela"]
    assert len(ours) == 7
    for definition in ours:
        for group in definition["input"].values():
            for name, (kind, *options) in group.items():
                link = kind.startswith("CANDELA") or (definition["name"] == "CandelaDecode" and kind == "LATENT")
                assert link or options[0].get("tooltip"), f"{definition['name']}.{name}"
