"""Writes the trained parts as a diffusers folder: bfloat16, no paths of this machine in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import PreTrainedTokenizerFast, Qwen3Model

from training import transformer


def write_model(
    out: Path,
    vae: AutoencoderKL,
    tokenizer: PreTrainedTokenizerFast,
    model: ZImageTransformer2DModel,
    text_encoder: Qwen3Model,
    shift: float,
    scale: float,
) -> None:
    """`shift` and `scale` normalise the raw latents: they become the VAE's shift_factor and scaling_factor."""
    with torch.no_grad():  # the features come from the layer before: the last one is never trained, and zeros compress
        for name, parameter in text_encoder.layers[-1].named_parameters():
            if "norm" not in name:
                parameter.zero_()
    vae.register_to_config(shift_factor=round(shift, 6), scaling_factor=round(scale, 6))
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=transformer.SHIFT),
        vae=vae.bfloat16(),
        text_encoder=text_encoder.bfloat16(),
        tokenizer=tokenizer,
        transformer=model.bfloat16(),
    )
    shutil.rmtree(out, ignore_errors=True)
    pipeline.save_pretrained(out, safe_serialization=True)
    clean(out)
    # The pipeline's own defaults (1024x1024, 50 steps, guidance 5) are not this model's.
    settings = {"defaults": {"width": 128, "height": 128, "steps": 8, "guidance": 0.0}}
    (out / "candela.json").write_text(json.dumps(settings, indent=2) + "\n")


def clean(out: Path) -> None:
    """Removes local paths, names the tokenizer class that every transformers release knows, opens permissions."""
    for file in out.rglob("*.json"):
        if file.name == "tokenizer.json":
            continue
        content = json.loads(file.read_text())
        content.pop("_name_or_path", None)
        if file.name == "tokenizer_config.json":
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
            for key in ("backend", "is_local", "local_files_only"):
                content.pop(key, None)
        if file.name == "model_index.json":
            content["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
        file.write_text(json.dumps(content, indent=2) + "\n")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
