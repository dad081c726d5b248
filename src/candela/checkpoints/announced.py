"""Models that are not on this machine, from what their authors published: configurations without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.published import PUBLICATIONS
from candela.checkpoints.variants import PIPELINES, SCHEDULERS
from candela.errors import ModelNotFound

# config.json of each component (Tongyi-MAI/Z-Image-Turbo, Alpha-VLLM/Lumina-Image-2.0), without what has no size.
Z_IMAGE: dict[str, Any] = {
    "all_patch_size": [2], "all_f_patch_size": [1], "in_channels": 16, "dim": 3840, "n_layers": 30,
    "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "norm_eps": 1e-5, "qk_norm": True, "cap_feat_dim": 2560,
    "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
}  # fmt: skip
LUMINA_IMAGE_2: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "hidden_size": 2304, "num_layers": 26,
    "num_refiner_layers": 2, "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256,
    "ffn_dim_multiplier": None, "norm_eps": 1e-5, "scaling_factor": 1.0, "axes_dim_rope": [32, 32, 32],
    "axes_lens": [300, 512, 512], "cap_feat_dim": 2304,
}  # fmt: skip
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_cache": False,
}  # fmt: skip
GEMMA_2_2B: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True, "use_cache": False,
}  # fmt: skip
FLUX_VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "latent_channels": 16, "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.3611,
    "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True,
}  # fmt: skip

MODELS = {
    "z-image-turbo": (("z-image", "turbo"), "ZImageTransformer2DModel", Z_IMAGE, "Qwen3Model", QWEN3_4B),
    "z-image": (("z-image", "base"), "ZImageTransformer2DModel", Z_IMAGE, "Qwen3Model", QWEN3_4B),
    "lumina-image-2": (
        ("lumina-image-2", ""), "Lumina2Transformer2DModel", LUMINA_IMAGE_2, "Gemma2Model", GEMMA_2_2B,
    ),
}  # fmt: skip


def announced(name: str) -> Checkpoint:
    """The model `name` as its authors describe it. Its tokenizer is the demo's, which makes about twice as many tokens
    of a text.

    Raises:
        ModelNotFound: nothing is known of its sizes.
    """
    if name not in MODELS:
        raise ModelNotFound(
            f"{name} is not on this machine, and of models that are not only {', '.join(MODELS)} are known in size. "
            f"Install it first: candela install {name}"
        )
    variant, transformer, config, text_encoder, text_config = MODELS[name]
    path = Path(name)
    parts = {
        "transformer": Part(path, "diffusers", transformer, config),
        "text_encoder": Part(path, "transformers", text_encoder, text_config),
        "vae": Part(path, "diffusers", "AutoencoderKL", FLUX_VAE),
        "tokenizer": Part(DEMO_FOLDER / "tokenizer", "transformers", "AutoTokenizer"),
        "scheduler": Part(path, "diffusers", "FlowMatchEulerDiscreteScheduler", SCHEDULERS[variant]),
    }
    return Checkpoint(name, path, PIPELINES[variant[0]], parts)


def published_bytes(name: str, precision: str) -> dict[str, int]:
    """Component -> length of its file in `precision`, as `candela install` brings it."""
    return {file.component: file.bytes for file in PUBLICATIONS[name].split[precision]}
