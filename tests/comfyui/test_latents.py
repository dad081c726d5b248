"""LATENT in and out: ComfyUI's own nodes on either side of the sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from candela.demo import check
from tests.comfyui import graphs
from tests.comfyui.conftest import HOLE
from tests.comfyui.test_workflows import rgb


def test_image_to_image_keeps_the_layout(server):
    """VAE Encode -> Sampler at denoise 0.5 -> VAE Decode: same place and size, and not the same picture."""
    graph = graphs.text_to_image(
        prompt="a large orange circle in the centre on a blue background", denoise=0.5, latent=["11", 0]
    )
    graph |= graphs.encoded_picture()
    graph["4"] = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 1]}}
    graph["12"] = {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["1", 1]}}
    graph["13"] = graphs.save("12")
    run = server.run(graph)
    assert run.ok, run.error
    (made,), (start,) = run.pictures["5"], run.pictures["13"]
    before = check(start.convert("RGB"), "a large red circle in the centre on a blue background")
    after = check(made.convert("RGB"), "a large circle in the centre on a blue background")
    assert before.ok
    assert after.background and after.shape and after.place and after.size
    assert abs(rgb(made) - rgb(start)).max() > 10


def test_outside_the_mask_the_picture_stays(server, base):
    prompt = "a yellow star on a blue background"
    graph = graphs.text_to_image(prompt=prompt, latent=["12", 0]) | graphs.encoded_picture()
    graph["12"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["11", 0], "mask": ["10", 1]}}
    graph["13"] = {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["1", 1]}}
    graph["14"] = graphs.save("13")
    run = server.run(graph)
    assert run.ok, run.error
    (made,), (start,) = run.pictures["5"], run.pictures["14"]
    assert check(made.convert("RGB"), prompt).ok
    difference = abs(rgb(made) - rgb(start)).max(axis=-1)
    left, top, right, bottom = HOLE
    assert difference[top:bottom, left:right].max() > 100
    difference[top:bottom, left:right] = 0
    assert difference.max() <= 2


def test_latents_that_were_changed_on_the_way_are_decoded_as_they_are(server):
    """Decode puts back what lies outside the mask only in the sampler's own result."""
    graph = graphs.text_to_image(prompt="a yellow star on a blue background", latent=["12", 0])
    graph |= graphs.encoded_picture()
    graph["12"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["11", 0], "mask": ["10", 1]}}
    graph["13"] = {"class_type": "LatentFlip", "inputs": {"samples": ["3", 0], "flip_method": "x-axis: vertically"}}
    graph["4"]["inputs"]["latent"] = ["13", 0]
    graph["15"] = {"class_type": "VAEDecode", "inputs": {"samples": ["13", 0], "vae": ["1", 1]}}
    graph["16"] = graphs.save("15")
    run = server.run(graph)
    assert run.ok, run.error
    assert abs(rgb(run.pictures["5"][0]) - rgb(run.pictures["16"][0])).max() <= 1


@pytest.mark.parametrize(
    "empty",
    [
        {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 128, "batch_size": 2}},  # 4 channels
        {"class_type": "EmptySD3LatentImage", "inputs": {"width": 96, "height": 128, "batch_size": 2}},  # 16
    ],
    ids=lambda node: node["class_type"],
)
def test_an_empty_latent_is_a_size(server, empty):
    graph = graphs.text_to_image(latent=["10", 0], width=512, height=512, batch_size=7) | {"10": empty}
    run = server.run(graph)
    assert run.ok, run.error
    assert [picture.size for picture in run.pictures["5"]] == [(96, 128)] * 2


def test_batch_index_picks_the_seed(server):
    """Picture 2 of a batch, taken out with Latent From Batch, is drawn again as it was."""
    empty = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 3}}
    picked = {"class_type": "LatentFromBatch", "inputs": {"samples": ["10", 0], "batch_index": 2, "length": 1}}
    whole = server.run(graphs.text_to_image(latent=["10", 0]) | {"10": empty})
    single = server.run(graphs.text_to_image(latent=["11", 0]) | {"10": empty, "11": picked})
    assert whole.ok and single.ok
    assert abs(rgb(whole.pictures["5"][2]) - rgb(single.pictures["5"][0])).max() <= 1
    assert abs(rgb(whole.pictures["5"][0]) - rgb(single.pictures["5"][0])).max() > 10


def test_foreign_keys_of_a_latent_are_kept():
    from candela.comfyui import latents

    latent = {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.ones(64, 64), "other": "kept"}
    out = latents.write(latent, torch.ones(1, 16, 8, 8))
    assert out["other"] == "kept" and out["noise_mask"] is latent["noise_mask"]
    assert out["samples"].shape == (1, 16, 8, 8)
    assert latent["samples"].shape == (1, 4, 8, 8), "the caller's own stays"


def test_a_saved_latent_comes_back_the_same(server, base):
    graph = graphs.text_to_image()
    graph["6"] = {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "latents/test"}}
    run = server.run(graph)
    assert run.ok, run.error
    file = max((base / "output" / "latents").glob("*.latent"), key=lambda path: path.stat().st_mtime)
    saved = load_file(file)["latent_tensor"]
    assert saved.dtype == torch.float32 and saved.shape == (1, 16, 16, 16)
    save_file({"latent_tensor": saved, "latent_format_version_0": torch.tensor([])}, base / "input" / "again.latent")
    again = server.run(
        {
            "1": graph["1"],
            "2": {"class_type": "LoadLatent", "inputs": {"latent": "again.latent"}},
            "3": {"class_type": "CandelaDecode", "inputs": {"model": ["1", 0], "latent": ["2", 0]}},
            "4": graphs.save("3"),
        }
    )
    assert again.ok, again.error
    assert np.array_equal(rgb(again.pictures["4"][0]), rgb(run.pictures["5"][0]))


@pytest.mark.parametrize("node", ["VAEDecodeTiled", "VAEEncodeTiled"])
def test_tiled_vae_nodes_work(server, node):
    graph = graphs.text_to_image() | graphs.encoded_picture()
    if node == "VAEDecodeTiled":
        sizes = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
        graph["4"] = {"class_type": node, "inputs": {"samples": ["3", 0], "vae": ["1", 1], **sizes}}
    else:
        sizes = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
        graph["11"] = {"class_type": node, "inputs": {"pixels": ["10", 0], "vae": ["1", 1], **sizes}}
        graph["3"]["inputs"] |= {"latent": ["11", 0], "denoise": 1.0}
    run = server.run(graph)
    assert run.ok, run.error
    assert check(run.pictures["5"][0].convert("RGB"), graphs.STAR).ok
