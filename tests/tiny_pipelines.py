"""Tiny real components with random weights for many text-to-image pipelines of diffusers.

Each function returns a pipeline; `PIPELINES` has them by name. Saved, they are ordinary diffusers folders."""

from __future__ import annotations

import diffusers as d
import transformers as t

from tests.tiny import randomize, tokenizer, vae

VOCABULARY = 261  # of tiny.tokenizer


def words(length: int = 77, **kind) -> t.PreTrainedTokenizerFast:
    made = tokenizer(**kind)
    made.model_max_length = length
    return made


def clip(width: int = 16, project: int | None = None, seed: int = 1):
    config = t.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=project or width, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return randomize((t.CLIPTextModelWithProjection if project else t.CLIPTextModel)(config), seed)


def t5(width: int = 16, kind: str = "T5", seed: int = 2):
    config = getattr(t, f"{kind}Config")(
        vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2, relative_attention_num_buckets=8
    )  # fmt: skip
    return randomize(getattr(t, f"{kind}EncoderModel")(config), seed)


def kl(channels: int = 4, shift: float | None = None):
    return vae(channels, 3, shift, 0.18215)


def unet(seed: int = 4, **more):
    settings = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 2,
    }  # fmt: skip
    return randomize(d.UNet2DConditionModel(**{**settings, **more}), seed)


def euler(**more):
    return d.FlowMatchEulerDiscreteScheduler(**more)


# --- Stable Diffusion ---------------------------------------------------------------------------


def stable_diffusion(cls=d.StableDiffusionPipeline, scheduler=None, **more):
    return cls(
        vae=kl(), text_encoder=clip(), tokenizer=words(), unet=unet(**more),
        scheduler=scheduler or d.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(cls=d.StableDiffusionXLPipeline, scheduler=None):
    denoiser = unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=16 + 6 * 8, use_linear_projection=True,
        attention_head_dim=(2, 4),
    )  # fmt: skip
    return cls(
        vae=kl(), text_encoder=clip(), text_encoder_2=clip(project=16, seed=5), tokenizer=words(), tokenizer_2=words(),
        unet=denoiser, scheduler=scheduler or d.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )  # fmt: skip


def sdxl_turbo():
    scheduler = d.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    return stable_diffusion_xl(scheduler=scheduler)


def latent_consistency():
    scheduler = d.LCMScheduler(beta_schedule="scaled_linear")
    return stable_diffusion(d.LatentConsistencyModelPipeline, scheduler, time_cond_proj_dim=8)


def stable_diffusion_3(cls=d.StableDiffusion3Pipeline):
    transformer = d.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=32, out_channels=16,
        pos_embed_max_size=64,
    )  # fmt: skip
    return cls(
        scheduler=euler(shift=3.0), vae=kl(16, 0.06), transformer=randomize(transformer, 6),
        text_encoder=clip(project=16), tokenizer=words(), text_encoder_2=clip(project=16, seed=7), tokenizer_2=words(),
        text_encoder_3=t5(32), tokenizer_3=words(256),
    )  # fmt: skip


# --- Flux and its kin -----------------------------------------------------------------------------


def flux(cls=d.FluxPipeline):
    transformer = d.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return cls(
        scheduler=euler(shift=3.0, use_dynamic_shifting=True), vae=kl(16, 0.1159), text_encoder=clip(),
        tokenizer=words(), text_encoder_2=t5(), tokenizer_2=words(512), transformer=randomize(transformer, 8),
    )  # fmt: skip


def chroma():
    transformer = d.ChromaTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8), approximator_num_channels=16, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return d.ChromaPipeline(
        scheduler=euler(), vae=kl(16, 0.1159), text_encoder=t5(), tokenizer=words(512),
        transformer=randomize(transformer, 9),
    )  # fmt: skip


# --- PixArt, Sana, Hunyuan, CogView, ... ----------------------------------------------------------


def pixart(cls=d.PixArtSigmaPipeline):
    transformer = d.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=16,
        in_channels=4, out_channels=8, cross_attention_dim=16, use_additional_conditions=False,
    )  # fmt: skip
    return cls(
        tokenizer=words(120), text_encoder=t5(), vae=kl(), transformer=randomize(transformer, 10),
        scheduler=d.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def gemma2(width: int = 16):
    config = t.Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, sliding_window=64,
    )  # fmt: skip
    return randomize(t.Gemma2Model(config), 11)


def dc():
    return randomize(
        d.AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * 6,
            decoder_block_types=("ResBlock",) * 6, encoder_block_out_channels=(4,) * 6,
            decoder_block_out_channels=(4,) * 6, encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6,
            encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6, downsample_block_type="conv",
            upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        12, std=0.3,
    )  # fmt: skip


def sana(cls=d.SanaPipeline, scheduler=None, **more):
    transformer = d.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=32, **more,
    )  # fmt: skip
    return cls(
        tokenizer=words(1000), text_encoder=gemma2(), vae=dc(), transformer=randomize(transformer, 13),
        scheduler=scheduler or euler(shift=3.0),
    )  # fmt: skip


def sana_sprint():
    return sana(d.SanaSprintPipeline, d.SCMScheduler(), guidance_embeds=True, qk_norm="rms_norm_across_heads")


def hunyuan_dit(cls=d.HunyuanDiTPipeline):
    transformer = d.HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=4, hidden_size=24, text_len=77,
        text_len_t5=256, activation_fn="gelu-approximate",
    )  # fmt: skip
    bert = t.BertModel(
        t.BertConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    )  # fmt: skip
    return cls(
        vae=kl(), text_encoder=randomize(bert, 14), tokenizer=words(77), transformer=randomize(transformer, 15),
        scheduler=d.DDPMScheduler(), text_encoder_2=t5(), tokenizer_2=words(256), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def aura_flow():
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=256,
    )  # fmt: skip
    return d.AuraFlowPipeline(
        tokenizer=words(256), text_encoder=t5(kind="UMT5"), vae=kl(), transformer=randomize(transformer, 16),
        scheduler=euler(),
    )  # fmt: skip


def cogview3():
    transformer = d.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return d.CogView3PlusPipeline(
        tokenizer=words(224), text_encoder=t5(), vae=kl(), transformer=randomize(transformer, 17),
        scheduler=d.CogVideoXDDIMScheduler(),
    )  # fmt: skip


def cogview4():
    transformer = d.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    glm = t.GlmModel(
        t.GlmConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip
    return d.CogView4Pipeline(
        tokenizer=words(1024, bos=True), text_encoder=randomize(glm, 18), vae=kl(), transformer=randomize(transformer, 19),
        scheduler=euler(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"),
    )  # fmt: skip


# --- combined ones, a prior and a decoder -----------------------------------------------------------


def clip_vision(width: int = 16, project: int = 16):
    config = t.CLIPVisionConfig(
        hidden_size=width, image_size=16, patch_size=8, intermediate_size=24, num_attention_heads=2,
        num_hidden_layers=2, projection_dim=project,
    )  # fmt: skip
    return randomize(t.CLIPVisionModelWithProjection(config), 20)


PIPELINES = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionPAGPipeline": lambda: stable_diffusion(d.StableDiffusionPAGPipeline),
    "StableDiffusionPanoramaPipeline": lambda: stable_diffusion(d.StableDiffusionPanoramaPipeline),
    "LatentConsistencyModelPipeline": latent_consistency,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusionXLPAGPipeline": lambda: stable_diffusion_xl(d.StableDiffusionXLPAGPipeline),
    "sdxl-turbo": sdxl_turbo,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "StableDiffusion3PAGPipeline": lambda: stable_diffusion_3(d.StableDiffusion3PAGPipeline),
    "FluxPipeline": flux,
    "FluxKontextPipeline": lambda: flux(d.FluxKontextPipeline),
    "ChromaPipeline": chroma,
    "PixArtAlphaPipeline": lambda: pixart(d.PixArtAlphaPipeline),
    "PixArtSigmaPipeline": pixart,
    "PixArtSigmaPAGPipeline": lambda: pixart(d.PixArtSigmaPAGPipeline),
    "SanaPipeline": sana,
    "SanaPAGPipeline": lambda: sana(d.SanaPAGPipeline),
    "SanaSprintPipeline": sana_sprint,
    "HunyuanDiTPipeline": hunyuan_dit,
    "HunyuanDiTPAGPipeline": lambda: hunyuan_dit(d.HunyuanDiTPAGPipeline),
    "AuraFlowPipeline": aura_flow,
    "CogView3PlusPipeline": cogview3,
    "CogView4Pipeline": cogview4,
}
