"""Lumina-Image 2.0 (Alpha-VLLM)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from candela.checkpoints import Checkpoint, Components
from candela.families.base import Conditioning, Defaults, Family, Predictor
from candela.families.layers import replace_forward
from candela.families.lumina_image_2_forward import LuminaImage2Forward, block_forward

# The model's own system prompt, as in diffusers' Lumina2Pipeline.
SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment "
    "based on textual prompts or user prompts."
)


class LuminaImage2(Family):
    name = "lumina-image-2"
    pipelines = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    transformer_class = "Lumina2Transformer2DModel"
    text_width_key = "cap_feat_dim"
    max_tokens = 256
    max_side = 8192  # axes_lens [300, 512, 512]: 512 patches of 16 pixels
    axes_lens = (257, 512, 512)
    guidance_off = 1.0
    empty_texts = True  # the pipeline then gives the transformer no text token, which it takes

    def variant_defaults(self, checkpoint: Checkpoint) -> Defaults:
        return Defaults(steps=30, guidance=4.0)

    def prepare(self, components: Components) -> None:
        super().prepare(components)
        transformer = components.transformer
        replace_forward([*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers], block_forward)

    def template(self, components: Components, prompt: str, *, negative: bool) -> str:
        return prompt if negative else f"{SYSTEM_PROMPT} <Prompt Start> {prompt}"

    def set_timesteps(self, scheduler: Any, steps: int, latents: torch.Tensor) -> None:
        from diffusers.pipelines.lumina2.pipeline_lumina2 import calculate_shift

        limits = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        # Sic: the pipeline passes the number of channels where the number of tokens was meant. It
        # matters only to schedulers with dynamic shifting, and there the pictures should agree.
        mu = calculate_shift(latents.shape[1], *(scheduler.config.get(key, value) for key, value in limits.items()))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=latents.device, mu=mu)

    def predictor(
        self, components: Components, conditioning: Conditioning, guidance: float, shape: torch.Size
    ) -> Predictor:
        transformer = components.transformer
        like = transformer.x_embedder.bias  # `transformer.device` and `.dtype` walk through all modules, each time
        dtype = like.dtype

        def forward_for(texts: tuple[torch.Tensor, ...]) -> LuminaImage2Forward:
            return LuminaImage2Forward(transformer, [f.to(like.device, dtype) for f in texts], *shape[2:])

        positive, negative = forward_for(conditioning.positive), None
        if self.guided(guidance):
            assert conditioning.negative is not None
            negative = forward_for(conditioning.negative)

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            time = (1 - timestep / 1000).reshape(1)
            latents = latents.to(dtype)
            out = positive(latents, time).float()
            if negative is not None:
                without = negative(latents, time).float()
                guided = without + guidance * (out - without)
                # Keeps the norm of each row of latents: the model's own guidance (cfg_normalization).
                out = guided * (out.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
            return -out

        return predict
