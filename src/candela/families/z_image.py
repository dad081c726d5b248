"""Z-Image (Tongyi-MAI): Turbo, Base, and the embedded demo."""

from __future__ import annotations

import copy
from typing import Any

import torch

from candela.checkpoints import Checkpoint, Components, Part
from candela.checkpoints.templates import check_template
from candela.errors import DamagedFile, MismatchedModel
from candela.families.base import Conditioning, Defaults, Family, Predictor
from candela.families.layers import replace_forward
from candela.families.vae import factor_of
from candela.families.z_image_forward import ZImageForward, block_forward

REACH = 512  # patches a side: axes_lens [1536, 512, 512]


class ZImage(Family):
    name = "z-image"
    pipelines = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
    transformer_class = "ZImageTransformer2DModel"
    text_width_key = "cap_feat_dim"
    max_tokens = 512
    max_side = REACH * 16
    axes_lens = (REACH + 2, REACH, REACH)  # a picture's own place is behind those of its prompt
    guidance_off = 0.0

    def with_vae(self, vae: Part) -> Family:
        """With any factor: diffusers' pipeline takes it from the VAE."""
        own = copy.copy(self)
        own.latent_factor = factor_of(vae)
        own.size_multiple = 2 * own.latent_factor  # patches of 2 x 2 latents
        own.max_side = REACH * own.size_multiple
        return own

    def variant_defaults(self, checkpoint: Checkpoint) -> Defaults:
        """Turbo is distilled to 8 steps without guidance; its scheduler's shift is 3.0, Base's is 6.0."""
        if checkpoint.parts["scheduler"].config.get("shift") == 3.0:
            return Defaults(steps=8, guidance=0.0)
        return Defaults(steps=50, guidance=4.0)

    def prepare(self, components: Components) -> None:
        super().prepare(components)
        self._check_template(components.tokenizer)
        transformer = components.transformer
        replace_forward([*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers], block_forward)

    def _check_template(self, tokenizer: Any) -> None:
        """
        Raises:
            MismatchedModel: there is none; DamagedFile: it does more than to frame messages.
        """
        template = getattr(tokenizer, "chat_template", None)
        if not isinstance(template, str):
            raise MismatchedModel(
                f"the tokenizer {tokenizer.name_or_path} has no chat template (chat_template.jinja), which {self.name} "
                "puts prompts into. Use the tokenizer that the model came with"
            )
        try:
            check_template(template)
        except ValueError as error:
            raise DamagedFile(
                f"the chat template of the tokenizer {tokenizer.name_or_path} is not run: {error}. A template is a "
                "program, and this one does more than to frame a prompt; use the tokenizer that the model came with"
            ) from error

    def template(self, components: Components, prompt: str, *, negative: bool) -> str:
        tokenizer = components.tokenizer
        try:
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
        except Exception as error:  # Jinja's own, and what a template raises
            raise DamagedFile(
                f"the chat template of the tokenizer {tokenizer.name_or_path} fails: {str(error)[:300]}. Use the "
                "tokenizer that the model came with"
            ) from error

    def set_timesteps(self, scheduler: Any, steps: int, latents: torch.Tensor) -> None:
        from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

        tokens = (latents.shape[2] // 2) * (latents.shape[3] // 2)
        limits = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        mu = calculate_shift(tokens, *(scheduler.config.get(key, default) for key, default in limits.items()))
        scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps), device=latents.device, mu=mu)

    def predictor(
        self, components: Components, conditioning: Conditioning, guidance: float, shape: torch.Size
    ) -> Predictor:
        transformer, number = components.transformer, shape[0]
        texts = list(conditioning.positive)
        guided = self.guided(guidance)
        if guided:
            assert conditioning.negative is not None
            texts += conditioning.negative
        like = transformer.cap_pad_token  # `transformer.device` and `.dtype` walk through all modules, each time
        dtype = like.dtype
        features = [f.to(like.device, dtype) for f in texts]
        forward = ZImageForward(transformer, features, *shape[2:])

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            # The transformer counts time from noise (0) to picture (1) and points the other way.
            time = ((1000 - timestep) / 1000).reshape(1)
            pictures = latents.to(dtype)
            out = forward(torch.cat([pictures] * 2) if guided else pictures, time).float()
            if guided:
                positive, negative = out[:number], out[number:]
                out = positive + guidance * (positive - negative)
            return -out

        return predict

    def cfg(self, guidance: float) -> float:
        return guidance + 1.0
