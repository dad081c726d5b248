"""Lumina-Next SFT (Alpha-VLLM)."""

from __future__ import annotations

import math
from typing import Any

import torch

from candela.checkpoints import Checkpoint, Components
from candela.families.base import Conditioning, Defaults, Family, Predictor, pad_features

ROTARY_SIDE = 384  # patches


class LuminaNext(Family):
    name = "lumina-next"
    pipelines = ("LuminaPipeline", "LuminaText2ImgPipeline")
    transformer_class = "LuminaNextDiT2DModel"
    text_width_key = "cross_attention_dim"
    max_tokens = 256
    max_side = ROTARY_SIDE * 16
    guidance_off = 1.0

    def variant_defaults(self, checkpoint: Checkpoint) -> Defaults:
        return Defaults(steps=30, guidance=4.0)

    def template(self, components: Components, prompt: str, *, negative: bool) -> str:
        """Lower case for the prompt only, as the pipeline does without its optional cleaning of web captions."""
        return prompt if negative else prompt.lower().strip()

    def set_timesteps(self, scheduler: Any, steps: int, latents: torch.Tensor) -> None:
        scheduler.set_timesteps(steps, device=latents.device)

    def predictor(
        self, components: Components, conditioning: Conditioning, guidance: float, shape: torch.Size
    ) -> Predictor:
        transformer, number = components.transformer, shape[0]
        features = list(conditioning.positive)
        guided = self.guided(guidance)
        if guided:
            assert conditioning.negative is not None
            features += list(conditioning.negative)
        text, mask = pad_features(features, transformer)
        # Proportional attention and the rotary table adapt to sizes other than the one trained on.
        trained = transformer.config.sample_size * self.latent_factor
        scale = math.sqrt(shape[2] * shape[3] * self.latent_factor**2 / trained**2)
        attention = {"base_sequence_length": (trained // 16) ** 2}
        # The table is moved once here: the transformer would move it anew, and wait for it, in every step.
        rotary = rotary_table(transformer.head_dim, scale).to(text.device)

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            t = (1 - timestep / 1000).expand(len(features))
            pictures = latents.to(text.dtype)
            out = transformer(
                hidden_states=torch.cat([pictures] * 2) if guided else pictures,
                timestep=t,
                encoder_hidden_states=text,
                encoder_mask=mask,
                image_rotary_emb=rotary,
                cross_attention_kwargs=dict(attention),
                return_dict=False,
            )[0].float()
            out = out.chunk(2, dim=1)[0]  # the other half is the learned variance
            if guided:
                positive, negative = out[:number], out[number:]
                # The authors guide the first three channels only, and so does the pipeline.
                head = negative[:, :3] + guidance * (positive[:, :3] - negative[:, :3])
                out = torch.cat([head, positive[:, 3:]], dim=1)
            return -out

        return predict


def rotary_table(head_dim: int, linear_factor: float) -> torch.Tensor:
    """Positions are interpolated for larger pictures. (The pipeline can switch to another base late in a run,
    beyond `scaling_watershed`, but by default that is never reached.)"""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return get_2d_rotary_pos_embed_lumina(
        head_dim, ROTARY_SIDE, ROTARY_SIDE, linear_factor=linear_factor, ntk_factor=1.0
    )
