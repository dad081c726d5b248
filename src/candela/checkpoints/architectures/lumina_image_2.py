"""Lumina-Image 2.0's transformer."""

from __future__ import annotations

from typing import Any

from candela.checkpoints.architectures.architecture import Architecture, Shapes, Wants, count

SHARED_RENAMES = (
    (r"^cap_embedder\.", "time_caption_embed.caption_embedder."),
    (r"^t_embedder\.mlp\.0\.", "time_caption_embed.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_caption_embed.timestep_embedder.linear_2."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear_1."),
    (r"^final_layer\.linear\.", "norm_out.linear_2."),
    (r"\.adaLN_modulation\.1\.", ".norm1.linear."),
    (r"\.feed_forward\.w([123])\.", r".feed_forward.linear_\1."),
    (r"^(context_refiner\.\d+)\.attention_norm1\.", r"\1.norm1."),
    (r"\.attention_norm1\.", ".norm1.norm."),
    (r"\.attention_norm2\.", ".norm2."),
)


def feed_forward(inner: int, rows: int) -> dict[str, Any]:
    """The options with which diffusers' LuminaFeedForward, given `inner`, gets `rows` hidden values.

    The authors' multiple_of 256 and no multiplier where that fits, as it does in all that they published."""
    if -(-inner // 256) * 256 == rows:
        return {"multiple_of": 256, "ffn_dim_multiplier": None}
    if rows >= inner:
        return {"multiple_of": rows, "ffn_dim_multiplier": None}
    return {"multiple_of": 1, "ffn_dim_multiplier": (rows + 0.5) / inner}


SIZES = ("in_channels", "hidden_size", "num_layers", "num_refiner_layers", "num_attention_heads", "num_kv_heads",
         "cap_feat_dim")  # fmt: skip


def config(shapes: Shapes) -> dict[str, Any]:
    hidden, patch = shapes["x_embedder.weight"]
    head = shapes["layers.0.attn.norm_q.weight"][0]
    fused = shapes.get("layers.0.attn.qkv.weight")
    keys = (fused[0] - hidden) // 2 if fused else shapes["layers.0.attn.to_k.weight"][0]
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": patch // 4,
        "hidden_size": hidden,
        "num_layers": count(shapes, r"layers\.(\d+)\."),
        "num_refiner_layers": count(shapes, r"noise_refiner\.(\d+)\."),
        "num_attention_heads": hidden // head,
        "num_kv_heads": keys // head,
        **feed_forward(4 * hidden, shapes["layers.0.feed_forward.linear_1.weight"][0]),
        "norm_eps": 1e-5,
        "scaling_factor": 1.0,
        "axes_dim_rope": [head // 3] * 3,
        "axes_lens": [300, 512, 512],
        "cap_feat_dim": shapes["time_caption_embed.caption_embedder.1.weight"][1],
    }


LUMINA_IMAGE_2 = Architecture(
    name="lumina-image-2",
    component="transformer",
    library="diffusers",
    class_name="Lumina2Transformer2DModel",
    anchors=("time_caption_embed.caption_embedder.1.weight", "cap_embedder.1.weight"),
    marks=(
        ("layers.0.norm1.linear.weight", "layers.0.adaLN_modulation.1.weight"),
        ("noise_refiner.0.attn.norm_q.weight", "noise_refiner.0.attention.q_norm.weight"),
    ),
    renames=(
        (r"\.attention\.", ".attn."),
        (r"\.attn\.out\.", ".attn.to_out.0."),
        (r"\.attn\.([qk])_norm\.", r".attn.norm_\1."),
        *SHARED_RENAMES,
    ),
    ignored=(r"^norm_final\.weight$",),  # in the authors' code, without use
    config=config,
    sizes=lambda shapes: {key: config(shapes)[key] for key in SIZES},
    published={2304: 26},
    absent=(r"^clip_text_pooled_proj\.", r"^time_text_embed\."),  # NewBie
    wants=Wants("gemma2", 2304, "cap_feat_dim", "Flux's, 16 channels (ae.safetensors)"),
)
