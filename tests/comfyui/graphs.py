"""API-format workflows that the tests vary."""

from __future__ import annotations

from typing import Any

STAR = "a large yellow star on a purple background"


def text_to_image(model: str = "demo", prompt: str = STAR, latent: list | None = None, **settings: Any) -> dict:
    """The four nodes and Save Image, which is node 5; `latent` is a link."""
    values = {"width": 0, "height": 0, "batch_size": 1, "seed": 7, "steps": 0, "guidance": -1, "denoise": 1.0}
    inputs = {"model": ["1", 0], "prompt": ["2", 0], **values, **settings}
    if latent:
        inputs["latent"] = latent
    return {
        "1": {"class_type": "CandelaLoadModel", "inputs": {"model": model, "precision": "auto"}},
        "2": {
            "class_type": "CandelaEncodePrompt",
            "inputs": {"model": ["1", 0], "prompt": prompt, "negative_prompt": ""},
        },
        "3": {"class_type": "CandelaSampler", "inputs": inputs},
        "4": {"class_type": "CandelaDecode", "inputs": {"model": ["1", 0], "latent": ["3", 0]}},
        "5": save("4"),
    }


def save(node: str, slot: int = 0) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": [node, slot], "filename_prefix": "test"}}


def encoded_picture(name: str = "example.png", vae: list | None = None) -> dict:
    """Load Image (10) and VAE Encode (11)."""
    return {
        "10": {"class_type": "LoadImage", "inputs": {"image": name}},
        "11": {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": vae or ["1", 1]}},
    }
