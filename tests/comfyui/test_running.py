"""While it runs: progress, previews, Interrupt, what is not done twice, and what failures say."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import check
from tests.comfyui import graphs
from tests.comfyui.conftest import start_picture
from tests.comfyui.server import Server
from tests.comfyui.test_workflows import rgb

# 400 tokens: a step takes some 50 ms, long against an HTTP request.
SLOW = {"width": 320, "height": 320, "steps": 40}


def test_one_progress_event_and_one_preview_per_step(server):
    run = server.run(graphs.text_to_image(seed=70, steps=6))
    assert run.ok, run.error
    assert [event["value"] for event in run.named("progress")] == [1, 2, 3, 4, 5, 6]
    assert all(event["max"] == 6 for event in run.named("progress"))
    assert len(run.previews) == 6
    last = check(run.previews[-1].convert("RGB"), graphs.STAR)
    assert last.colour and last.background, "the preview shows what is being made"


def test_interrupt_stops_within_a_step_twenty_times(server, core, tmp_path):
    for attempt in range(20):
        stop_after, seen_at_stop = 2 + attempt % 5, []

        def on_event(kind, data, stop_after=stop_after, seen=seen_at_stop):
            if kind == "progress" and data["value"] == stop_after:
                server.interrupt()
                seen.append(data["value"])

        run = server.run(graphs.text_to_image(seed=100 + attempt, **SLOW), on_event)
        assert run.named("execution_interrupted"), "it ended as interrupted, not as failed"
        assert seen_at_stop == [stop_after]
        assert run.named("progress")[-1]["value"] <= stop_after + 1
    after = server.run(graphs.text_to_image(seed=21))
    assert after.ok, after.error
    fresh = Server(core, _with_pack(tmp_path))
    try:
        expected = fresh.run(graphs.text_to_image(seed=21))
    finally:
        fresh.stop()
    assert np.array_equal(rgb(after.pictures["5"][0]), rgb(expected.pictures["5"][0]))


def _with_pack(base):
    from tests.comfyui.conftest import REPOSITORY

    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "candela").symlink_to(REPOSITORY)
    return base


def test_another_seed_neither_loads_nor_encodes(server):
    first = server.run(graphs.text_to_image(prompt="a small red circle on a white background", seed=1))
    before = len(server.log)
    second = server.run(graphs.text_to_image(prompt="a small red circle on a white background", seed=2))
    assert first.ok and second.ok
    assert second.executed == {"3", "4", "5"}
    new = server.log[before:]
    assert "[Candela] sampled" in new
    assert "[Candela] loaded" not in new and "[Candela] encoded" not in new


def test_two_nodes_share_one_loaded_model(server):
    graph = graphs.text_to_image(seed=300)
    graph["21"] = {"class_type": "CandelaLoadModel", "inputs": {"model": "demo", "precision": "float32"}}
    graph["22"] = {
        "class_type": "CandelaEncodePrompt",
        "inputs": {"model": ["21", 0], "prompt": graphs.STAR, "negative_prompt": ""},
    }
    graph["23"] = {"class_type": "CandelaLoadModel", "inputs": {"model": "demo", "precision": "float32"}}
    graph["24"] = {"class_type": "CandelaDecode", "inputs": {"model": ["23", 0], "latent": ["3", 0]}}
    graph["3"]["inputs"]["prompt"] = ["22", 0]
    graph["25"] = graphs.save("24")
    assert server.run(graph).ok
    before = server.log.count("[Candela] loaded")
    graph["21"]["inputs"]["precision"] = "auto"  # on a CPU, float32 too
    graph["3"]["inputs"]["seed"] = 301
    assert server.run(graph).ok
    assert server.log.count("[Candela] loaded") == before


def test_edited_files_are_loaded_again(server, base):
    folder = base / "models" / "diffusers" / "edited"
    shutil.copytree(DEMO_FOLDER, folder)
    try:
        graph = graphs.text_to_image("edited", seed=400)
        assert server.run(graph).ok
        before = server.log.count("[Candela] loaded edited")
        assert server.run(graph).executed == set(), "nothing changed, nothing runs"
        config = folder / "candela.json"
        config.write_text(config.read_text().replace('"steps": 8', '"steps": 5'))
        again = server.run(graph)
        assert again.ok, again.error
        assert server.log.count("[Candela] loaded edited") == before + 1
        assert len(again.named("progress")) == 5
    finally:
        shutil.rmtree(folder)


def test_edited_files_reach_the_all_in_one_node_too(server, base):
    folder = base / "models" / "diffusers" / "edited-whole"
    shutil.copytree(DEMO_FOLDER, folder)
    settings = {"width": 0, "height": 0, "batch_size": 1, "seed": 7, "steps": 0, "guidance": -1, "denoise": 1.0}
    inputs = {"model": "edited-whole", "prompt": graphs.STAR, "negative_prompt": "", **settings}
    graph = {"1": {"class_type": "LuminaNextDiffusersWrapper", "inputs": inputs}, "2": graphs.save("1")}
    try:
        assert len(server.run(graph).named("progress")) == 8
        config = folder / "candela.json"
        config.write_text(config.read_text().replace('"steps": 8', '"steps": 5'))
        assert len(server.run(graph).named("progress")) == 5
    finally:
        shutil.rmtree(folder)


def bad_situations(base) -> dict[str, tuple[dict, list[str]]]:
    """-> graph and words that its message must hold."""
    save_file(
        {"latent_tensor": torch.randn(1, 8, 16, 16), "latent_format_version_0": torch.tensor([])},
        base / "input" / "eight.latent",
    )
    start_picture().convert("RGB").save(base / "input" / "opaque.png")
    opaque = graphs.encoded_picture("opaque.png")
    opaque["12"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["11", 0], "mask": ["10", 1]}}
    eight = {"10": {"class_type": "LoadLatent", "inputs": {"latent": "eight.latent"}}}
    return {
        "missing model": (
            graphs.text_to_image("z-image"),
            ["z-image", "not on this machine", "candela install z-image"],
        ),
        "unknown model": (graphs.text_to_image("z-image-tubo"), ["z-image-tubo", "z-image-turbo"]),
        "size": (graphs.text_to_image(width=1000, height=1000), ["1000", "multiple of 16", "992 or 1008"]),
        "channels": (graphs.text_to_image(latent=["10", 0]) | eight, ["8 channels", "16"]),
        "corrupt file": (graphs.text_to_image("broken"), ["vae", "safetensors", "Download it again"]),
        "not a number": (graphs.text_to_image("not-a-number"), ["NaN", "damaged", "download"]),
        "empty mask": (graphs.text_to_image(latent=["12", 0]) | opaque, ["mask is empty", "MaskEditor"]),
        "denoise": (graphs.text_to_image(denoise=0.5), ["0.5", "VAE Encode"]),
    }


SITUATIONS = [
    "missing model", "unknown model", "size", "channels", "corrupt file", "not a number", "denoise", "empty mask",
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_failure_says_what_and_what_to_do(server, base, situation):
    graph, words = bad_situations(base)[situation]
    run = server.run(graph)
    assert not run.ok and not run.pictures
    message = run.error.strip()
    for word in words:
        assert word in message, message
    assert "\n" not in message and len(message) < 700, "one paragraph"
    after = server.run(graphs.text_to_image(seed=500))
    assert after.ok, "the next prompt works"


def test_starting_costs_little_and_loads_nothing_heavy(server):
    times = [line for line in server.log.splitlines() if "seconds" in line and line.rstrip().endswith("candela")]
    assert times and float(times[0].split("seconds")[0].split()[-1]) <= 0.3, times
