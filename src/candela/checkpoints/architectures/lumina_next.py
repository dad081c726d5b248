"""Lumina-Next's transformer."""

from __future__ import annotations

from typing import Any

from candela.checkpoints.architectures.architecture import Architecture, Shapes, Wants, count
from candela.checkpoints.architectures.lumina_image_2 import SHARED_RENAMES, feed_forward

SIZES = ("in_channels", "hidden_size", "num_layers", "num_attention_heads", "num_kv_heads", "cross_attention_dim")


def config(shapes: Shapes) -> dict[str, Any]:
    """The size that the model was trained on is not in the file; all published ones were trained on 1024x1024."""
    hidden, patch = shapes["patch_embedder.proj.weight"]
    heads = shapes["layers.0.gate"][0]
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": patch // 4,
        "hidden_size": hidden,
        "num_layers": count(shapes, r"layers\.(\d+)\."),
        "num_attention_heads": heads,
        "num_kv_heads": shapes["layers.0.attn1.to_k.weight"][0] // (hidden // heads),
        **feed_forward(int(4 * 2 * hidden / 3), shapes["layers.0.feed_forward.linear_1.weight"][0]),
        "norm_eps": 1e-5,
        "learn_sigma": True,
        "qk_norm": True,
        "cross_attention_dim": shapes["layers.0.attn2.to_k.weight"][1],
        "scaling_factor": 1.0,
    }


LUMINA_NEXT = Architecture(
    name="lumina-next",
    component="transformer",
    library="diffusers",
    class_name="LuminaNextDiT2DModel",
    anchors=("time_caption_embed.caption_embedder.1.weight", "cap_embedder.1.weight"),
    marks=(
        ("layers.0.attn2.to_k.weight", "layers.0.attention.wk_y.weight"),
        ("layers.0.gate", "layers.0.attention.gate"),
    ),
    renames=(
        (r"^x_embedder\.", "patch_embedder.proj."),
        (r"\.attention\.gate$", ".gate"),
        # The authors' one attention over picture and text is two in diffusers, with the same queries.
        (r"\.attention\.wq\.", (".attn1.to_q.", ".attn2.to_q.")),
        (r"\.attention\.q_norm\.", (".attn1.norm_q.", ".attn2.norm_q.")),
        (r"\.attention\.w([kv])\.", r".attn1.to_\1."),
        (r"\.attention\.w([kv])_y\.", r".attn2.to_\1."),
        (r"\.attention\.wo\.", ".attn2.to_out.0."),
        (r"\.attention\.k_norm\.", ".attn1.norm_k."),
        (r"\.attention\.ky_norm\.", ".attn2.norm_k."),
        (r"\.attention_y_norm\.", ".norm1_context."),
        *SHARED_RENAMES,
    ),
    config=config,
    sizes=lambda shapes: {key: config(shapes)[key] for key in SIZES},
    published={2304: 24},
    wants=Wants("gemma", 2048, "cross_attention_dim", "SDXL's, 4 channels (sdxl_vae.safetensors)"),
)
