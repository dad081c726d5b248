"""ComfyUI's own Z-Image, for `candela bench`: a script for ComfyUI's Python, started with its folder as the first
argument and the weights' as the second. It loads them as ComfyUI's loader nodes do, answers "ready", and then each line
of JSON on stdin with a picture in a file, made as KSampler (euler, simple, cfg 1) and VAE Decode make it. Text features
come in a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(comfyui: str, weights: str, *arguments: str) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # ComfyUI talks
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.utils

    model: Any = comfy.sd.load_diffusion_model(str(Path(weights, "transformer.safetensors")))
    vae: Any = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(Path(weights, "vae.safetensors"))))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        Path(order["picture"]).write_bytes(picture(model, vae, order))
        print("done", file=answers, flush=True)


def picture(model: Any, vae: Any, order: dict[str, Any]) -> bytes:
    """`order`: features (a file), width, height, steps, seed -> the rows of an RGB picture, 8 bits a value."""
    import comfy.sample
    import comfy.utils
    import torch

    with torch.inference_mode():
        features = comfy.utils.load_torch_file(order["features"])["features"]
        conditioning = [[features[None], {}]]
        latents = torch.zeros(1, 16, order["height"] // 8, order["width"] // 8)
        noise = comfy.sample.prepare_noise(latents, order["seed"])
        samples = comfy.sample.sample(
            model, noise, order["steps"], 1.0, "euler", "simple", conditioning, conditioning, latents,
            seed=order["seed"], disable_pbar=True,
        )  # fmt: skip
        pixels = vae.decode(samples)[0]
        return bytes((pixels * 255).round().clamp(0, 255).byte().cpu().numpy().tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
