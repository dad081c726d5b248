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


def clip(width: int = 16, project: int | None = None, seed: int = 1, length: int = 77):
    config = t.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=length, projection_dim=project or width, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return randomize((t.CLIPTextModelWithProjection if project else t.CLIPTextModel)(config), seed)


def t5(width: int = 16, kind: str = "T5", seed: int = 2):
    config = getattr(t, f"{kind}Config")(
        vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        relative_attention_num_buckets=8
    )  # fmt: skip
    return randomize(getattr(t, f"{kind}EncoderModel")(config), seed)


def kl(channels: int = 4, shift: float | None = None, blocks: int = 4):
    return vae(channels, 3, shift, 0.18215, blocks)


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
        scheduler=scheduler or d.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def with_safety_checker(threshold: float):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = t.CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=16
    )  # fmt: skip
    checker = randomize(StableDiffusionSafetyChecker(config), 60)
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        weights.data.fill_(threshold)
    parts = {**stable_diffusion().components, "safety_checker": checker, "feature_extractor": image_processor()}
    return d.StableDiffusionPipeline(**parts)


def stable_diffusion_xl(cls=d.StableDiffusionXLPipeline, scheduler=None):
    denoiser = unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=16 + 6 * 8,
        use_linear_projection=True,
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
        t.BertConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24)
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
        tokenizer=words(1024, bos=True), text_encoder=randomize(glm, 18), vae=kl(), transformer=randomize(transformer,
        19),
        scheduler=euler(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
        time_shift_type="linear"),
    )  # fmt: skip


# --- combined ones, a prior and a decoder -----------------------------------------------------------


def clip_vision(width: int = 16, project: int = 16):
    config = t.CLIPVisionConfig(
        hidden_size=width, image_size=16, patch_size=8, intermediate_size=24, num_attention_heads=2,
        num_hidden_layers=2, projection_dim=project,
    )  # fmt: skip
    return randomize(t.CLIPVisionModelWithProjection(config), 20)


def combined_clip():
    """A text encoder, image encoder and tokenizer whose embeddings have one width."""
    return clip(project=16, seed=21), clip_vision(), words()


def prior():
    made = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=16, num_embeddings=77
    )  # fmt: skip
    return randomize(made, 22)


def prior_scheduler():
    return d.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
    )


def movq(channels: int = 4):
    return randomize(
        d.VQModel(
            block_out_channels=[32] * 4, down_block_types=["DownEncoderBlock2D"] * 4, latent_channels=channels,
            up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=4, norm_type="spatial", num_vq_embeddings=12,
            vq_embed_dim=4, mid_block_add_attention=False,
        ),
        23, std=0.2,
    )  # fmt: skip


def image_processor():
    return t.CLIPImageProcessor(size=16, crop_size=16)


def kandinsky_2_2():
    denoiser = unet(
        out_channels=8, addition_embed_type="image", encoder_hid_dim=16, encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    text, vision, tokens = combined_clip()
    return d.KandinskyV22CombinedPipeline(
        unet=denoiser, scheduler=d.DDIMScheduler(beta_schedule="linear", beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False),
        movq=movq(), prior_prior=prior(), prior_image_encoder=vision, prior_text_encoder=text, prior_tokenizer=tokens,
        prior_scheduler=prior_scheduler(), prior_image_processor=image_processor(),
    )  # fmt: skip


def kandinsky_2_1():
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    denoiser = unet(
        out_channels=8, addition_embed_type="text_image", encoder_hid_dim=16, encoder_hid_dim_type="text_image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    multilingual = MultilingualCLIP(
        MCLIPConfig(
            numDims=16, transformerDimensions=16, hidden_size=16, intermediate_size=24, num_attention_heads=2,
            num_hidden_layers=2, vocab_size=VOCABULARY,
        )
    )  # fmt: skip
    text, vision, tokens = combined_clip()
    return d.KandinskyCombinedPipeline(
        text_encoder=randomize(multilingual, 24), tokenizer=words(77, bos=True), unet=denoiser,
        scheduler=d.DDIMScheduler(beta_schedule="linear", beta_end=0.012, clip_sample=False, set_alpha_to_one=False),
        movq=movq(), prior_prior=prior(),
        prior_image_encoder=vision, prior_text_encoder=text, prior_tokenizer=tokens, prior_scheduler=prior_scheduler(),
        prior_image_processor=image_processor(),
    )  # fmt: skip


def kandinsky_3():
    denoiser = d.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=16,
    )  # fmt: skip
    return d.Kandinsky3Pipeline(
        tokenizer=words(128), text_encoder=t5(), unet=randomize(denoiser, 25), movq=movq(),
        scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )  # fmt: skip


def paella():
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return randomize(PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=32), 26, std=0.2)


def wuerstchen():
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt, WuerstchenPrior

    decoder = WuerstchenDiffNeXt(
        c_cond=16, c_hidden=[8, 16], nhead=[-1, 2], blocks=[1, 1], level_config=["CT", "CTA"], clip_embd=16,
        inject_effnet=[False, True], effnet_embd=16,
    )  # fmt: skip
    return d.WuerstchenCombinedPipeline(
        tokenizer=words(), text_encoder=clip(), decoder=randomize(decoder, 27), scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=paella(), prior_tokenizer=words(), prior_text_encoder=clip(seed=28),
        prior_prior=randomize(WuerstchenPrior(c_in=16, c=16, c_cond=16, c_r=16, depth=1, nhead=2), 29),
        prior_scheduler=d.DDPMWuerstchenScheduler(),
    )  # fmt: skip


def stable_cascade():
    small = {
        "conditioning_dim": 16, "block_out_channels": (16, 16), "num_attention_heads": (2, 2),
        "timestep_ratio_embedding_dim": 8,
        "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "clip_text_pooled_in_channels": 16,
    }  # fmt: skip
    layers = (("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2
    prior = d.models.StableCascadeUNet(
        in_channels=16, out_channels=16, clip_text_in_channels=16, clip_image_in_channels=16,
        switch_level=(False,), **small,
    )  # fmt: skip
    decoder = d.models.StableCascadeUNet(
        in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=16, block_types_per_layer=layers, **small
    )
    return d.StableCascadeCombinedPipeline(
        tokenizer=words(), text_encoder=clip(project=16), decoder=randomize(decoder, 30), vqgan=paella(),
        scheduler=d.DDPMWuerstchenScheduler(), prior_prior=randomize(prior, 31), prior_tokenizer=words(),
        prior_text_encoder=clip(project=16, seed=32), prior_scheduler=d.DDPMWuerstchenScheduler(),
    )  # fmt: skip


def amused():
    transformer = d.UVit2DModel(
        hidden_size=8, cond_embed_dim=8, micro_cond_encode_dim=2, micro_cond_embed_dim=10, encoder_hidden_size=8,
        vocab_size=32, codebook_size=16, in_channels=8, block_out_channels=8, num_res_blocks=1, downsample=True,
        upsample=True, block_num_heads=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        sample_size=8,
    )  # fmt: skip
    vq = d.VQModel(
        block_out_channels=[8, 8, 8, 8], down_block_types=["DownEncoderBlock2D"] * 4, latent_channels=8,
        up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=4, num_vq_embeddings=16, lookup_from_codebook=True,
    )  # fmt: skip
    return d.AmusedPipeline(
        vqvae=randomize(vq, 33, std=0.2), tokenizer=words(), text_encoder=clip(8, project=8),
        transformer=randomize(transformer, 34), scheduler=d.AmusedScheduler(mask_token_id=31),
    )  # fmt: skip


# --- in pixels, without a VAE ---------------------------------------------------------------------


def deepfloyd():
    denoiser = unet(
        sample_size=32, in_channels=3, out_channels=6, encoder_hid_dim=16, act_fn="gelu", addition_embed_type="text",
        block_out_channels=(32, 64), cross_attention_dim=32, norm_num_groups=32,
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), time_embedding_type="positional",
    )  # fmt: skip
    return d.IFPipeline(
        tokenizer=words(77), text_encoder=t5(), unet=denoiser,
        scheduler=d.DDPMScheduler(variance_type="learned_range", thresholding=True, dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0, prediction_type="epsilon", beta_schedule="squaredcos_cap_v2"),
        safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


# --- language models for text encoders ------------------------------------------------------------


def qwen_vae(channels: int = 16):
    made = d.AutoencoderKLQwenImage(
        base_dim=8, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels, latents_std=[1.5] * channels,
    )  # fmt: skip
    return randomize(made, 35, std=0.2)


QWEN = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def qwen_vl():
    config = t.Qwen2_5_VLConfig(
        text_config={**QWEN, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}},
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        },
        vision_start_token_id=3, vision_end_token_id=4, image_token_id=5, video_token_id=6,
    )  # fmt: skip
    return randomize(t.Qwen2_5_VLForConditionalGeneration(config), 36)


def qwen3(layers: int = 2, cls=t.Qwen3ForCausalLM):
    return randomize(cls(t.Qwen3Config(**{**QWEN, "num_hidden_layers": layers, "head_dim": 8})), 37)


def qwen_image():
    transformer = d.QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return d.QwenImagePipeline(
        scheduler=euler(use_dynamic_shifting=True), vae=qwen_vae(), text_encoder=qwen_vl(), tokenizer=words(1024),
        transformer=randomize(transformer, 38),
    )  # fmt: skip


def flux_2_vae():
    made = d.AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=[4, 4, 4, 4], layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    return randomize(made, 39, std=0.2)


def flux_2_klein():
    transformer = d.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    return d.Flux2KleinPipeline(
        scheduler=euler(use_dynamic_shifting=True), vae=flux_2_vae(), text_encoder=qwen3(28),
        tokenizer=words(512, chat=True), transformer=randomize(transformer, 40),
    )  # fmt: skip


def ovis():
    transformer = d.OvisImageTransformer2DModel(
        in_channels=64, out_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return d.OvisImagePipeline(
        scheduler=euler(use_dynamic_shifting=True), vae=kl(16, 0.1159), text_encoder=qwen3(2, t.Qwen3Model),
        tokenizer=words(1024, chat=True), transformer=randomize(transformer, 41),
    )  # fmt: skip


def bria():
    transformer = d.BriaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return d.BriaPipeline(
        transformer=randomize(transformer, 42), scheduler=euler(use_dynamic_shifting=True), vae=kl(4, 0.0),
        text_encoder=t5(), tokenizer=words(128),
    )  # fmt: skip


def wan_vae():
    made = d.AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16,
    )  # fmt: skip
    return randomize(made, 54, std=0.2)


def bria_fibo():
    transformer = d.BriaFiboTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 4, 8], text_encoder_dim=16,
    )  # fmt: skip
    smol = t.SmolLM3ForCausalLM(t.SmolLM3Config(**{**QWEN, "vocab_size": 128_001}, pad_token_id=0))
    return d.BriaFiboPipeline(
        transformer=randomize(transformer, 49), scheduler=euler(use_dynamic_shifting=True), vae=wan_vae(),
        text_encoder=randomize(smol, 50), tokenizer=words(1024, bos=True),
    )  # fmt: skip


def ernie():
    transformer = d.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, in_channels=16, out_channels=16,
        patch_size=1, text_in_dim=16, rope_axes_dim=(4, 4, 8),
    )  # fmt: skip
    return d.ErnieImagePipeline(
        transformer=randomize(transformer, 51), vae=flux_2_vae(), text_encoder=qwen3(2, t.Qwen3Model),
        tokenizer=words(512), scheduler=euler(), pe=None, pe_tokenizer=None,
    )  # fmt: skip


def latent_diffusion(blocks: int = 4):
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=VOCABULARY, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, head_dim=8,
            d_model=16
        )
    )  # fmt: skip
    return d.LDMTextToImagePipeline(
        vqvae=kl(blocks=blocks), bert=randomize(bert, 53), tokenizer=words(), unet=unet(),
        scheduler=d.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
    )  # fmt: skip


def hunyuan_image():
    transformer = d.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=16, rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32, 32), layers_per_block=1,
        spatial_compression_ratio=4, sample_size=64, scaling_factor=0.5,
    )  # fmt: skip
    return d.HunyuanImagePipeline(
        scheduler=euler(shift=5.0), vae=randomize(vae, 44), text_encoder=qwen_vl(), tokenizer=words(1024),
        text_encoder_2=t5(), tokenizer_2=words(128), transformer=randomize(transformer, 45),
        guider=d.AdaptiveProjectedMixGuidance(), ocr_guider=d.AdaptiveProjectedMixGuidance(),
    )  # fmt: skip


def hidream():
    transformer = d.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, caption_channels=[32, 16], text_emb_dim=32, num_routed_experts=2, axes_dims_rope=(8, 4,
        4),
        max_resolution=(128, 128), llama_layers=[0, 1], force_inference_output=True,
    )  # fmt: skip
    llama = t.LlamaForCausalLM(t.LlamaConfig(**QWEN))
    return d.HiDreamImagePipeline(
        scheduler=euler(), vae=kl(4, 0.0), text_encoder=clip(project=16, length=128), tokenizer=words(),
        text_encoder_2=clip(project=16, seed=46, length=128), tokenizer_2=words(), text_encoder_3=t5(32),
        tokenizer_3=words(128),
        text_encoder_4=randomize(llama, 47), tokenizer_4=words(128), transformer=randomize(transformer, 48),
    )  # fmt: skip


def kandinsky_5(blocks: int = 4):
    """Not in PIPELINES: it makes a megapixel at least."""
    transformer = d.Kandinsky5Transformer3DModel(
        in_visual_dim=16, in_text_dim=16, in_text_dim2=16, time_dim=16, out_visual_dim=16, model_dim=16, ff_dim=16,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 4, 8),
    )  # fmt: skip
    return d.Kandinsky5T2IPipeline(
        transformer=randomize(transformer, 54), vae=kl(16, blocks=blocks), text_encoder=qwen_vl(),
        tokenizer=words(1024), text_encoder_2=clip(), tokenizer_2=words(), scheduler=euler(),
    )  # fmt: skip


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
    "KandinskyV22CombinedPipeline": kandinsky_2_2,
    "KandinskyCombinedPipeline": kandinsky_2_1,
    "Kandinsky3Pipeline": kandinsky_3,
    "WuerstchenCombinedPipeline": wuerstchen,
    "StableCascadeCombinedPipeline": stable_cascade,
    "AmusedPipeline": amused,
    "IFPipeline": deepfloyd,
    "QwenImagePipeline": qwen_image,
    "Flux2KleinPipeline": flux_2_klein,
    "OvisImagePipeline": ovis,
    "BriaPipeline": bria,
    "HunyuanImagePipeline": hunyuan_image,
    "HiDreamImagePipeline": hidream,
    "BriaFiboPipeline": bria_fibo,
    "ErnieImagePipeline": ernie,
    "LDMTextToImagePipeline": latent_diffusion,
    "StableDiffusionSAGPipeline": lambda: stable_diffusion(d.StableDiffusionSAGPipeline),
    "SemanticStableDiffusionPipeline": lambda: stable_diffusion(d.SemanticStableDiffusionPipeline),
}

# Where 64x48 is no size of the pipeline's.
SIZES = {
    "KandinskyCombinedPipeline": (64, 128),
    "KandinskyV22CombinedPipeline": (64, 128),
    "Kandinsky3Pipeline": (64, 128),
    "WuerstchenCombinedPipeline": (128, 256),
    "StableCascadeCombinedPipeline": (128, 256),
    "HiDreamImagePipeline": (1024, 1024),
}

VARIANTS = ["sdxl-turbo"]  # in PIPELINES, but no class of its own
MISSING = {"PRXPipeline": "ftfy", "PRXPixelPipeline": "ftfy"}
