"""Z-Image's transformer, and what resembles it."""

from __future__ import annotations

from typing import Any

from candela.checkpoints.architectures.architecture import Architecture, Shapes, Wants, count

SIZES = ("in_channels", "dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "cap_feat_dim")


def config(shapes: Shapes) -> dict[str, Any]:
    """All but four constants of the authors (norm_eps, rope_theta, t_scale, axes_lens) is in the shapes."""
    dim, patch = shapes["all_x_embedder.2-1.weight"]
    head = shapes["layers.0.attention.norm_q.weight"][0]
    fused = shapes.get("layers.0.attention.qkv.weight")
    keys = (fused[0] - dim) // 2 if fused else shapes["layers.0.attention.to_k.weight"][0]
    siglip = shapes.get("siglip_embedder.1.weight")
    return {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": patch // 4,
        "dim": dim,
        "n_layers": count(shapes, r"layers\.(\d+)\."),
        "n_refiner_layers": count(shapes, r"noise_refiner\.(\d+)\."),
        "n_heads": dim // head,
        "n_kv_heads": keys // head,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        "siglip_feat_dim": siglip[1] if siglip else None,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [head // 4, head * 3 // 8, head * 3 // 8],
        "axes_lens": [1536, 512, 512],
    }


RENAMES = (
    (r"^final_layer\.", "all_final_layer.2-1."),
    (r"^x_embedder\.", "all_x_embedder.2-1."),
    (r"\.attention\.out\.", ".attention.to_out.0."),
    (r"\.attention\.([qk])_norm\.", r".attention.norm_\1."),
)

Z_IMAGE = Architecture(
    name="z-image",
    component="transformer",
    library="diffusers",
    class_name="ZImageTransformer2DModel",
    anchors=("cap_embedder.1.weight",),
    marks=(
        ("layers.0.adaLN_modulation.0.weight",),
        ("noise_refiner.0.attention.norm_q.weight", "noise_refiner.0.attention.q_norm.weight"),
        ("cap_embedder.1.weight",),
    ),
    renames=RENAMES,
    ignored=(r"^norm_final\.weight$",),  # in the authors' code, without use
    config=config,
    sizes=lambda shapes: {key: config(shapes)[key] for key in SIZES},
    published={3840: 30},
    absent=(r"^dec_net\.",),  # of pixel space
    wants=Wants("qwen3", 2560, "cap_feat_dim", "Flux's, 16 channels (ae.safetensors)"),
)

Z_IMAGE_CONTROLNET = Architecture(
    name="z-image",
    component="controlnet",
    library="diffusers",
    class_name="ZImageControlNetModel",
    anchors=("control_layers.0.adaLN_modulation.0.weight",),
    marks=(("control_layers.0.attention_norm1.weight",),),
    renames=RENAMES,
)
