"""Which model a LoRA was made for, from the names and widths of its modules. For messages: what fits is applied."""

from __future__ import annotations

import re
from collections.abc import Mapping

# In this order; dots are underscores here, as flat names have them.
SIGNS = (
    ("Flux", r"(double|single)_blocks|single_transformer_blocks"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)"),
    ("Stable Diffusion 3", r"joint_blocks"),
    ("Flux, Qwen-Image or Stable Diffusion 3", r"transformer_blocks_\d+_attn_add_[qkv]_proj"),
    ("Wan", r"(^|_)blocks_\d+_(cross_attn|self_attn|ffn)"),
    ("lumina-next", r"_attn[12]_|_attention_w[qkvo](_y)?$"),
    ("lumina-image-2", r"^(layers|noise_refiner|context_refiner)_\d+_(attn_to_|norm1_linear|adaLN_modulation_1$)"),
)
UNET = r"(down|up|input|output)_blocks|mid_block|middle_block"
UNETS = {2048: "Stable Diffusion XL", 768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2"}
Z_IMAGE = r"_attention_to_(q|k|v|out)|adaLN_modulation_0$"
# Z-Image and Lumina-Image 2.0 share their authors' names; what goes into an attention tells them apart.
WIDTHS = {3840: "z-image", 2304: "lumina-image-2"}
METADATA = (
    ("z-image", r"z[-_ ]?image"),
    ("lumina-image-2", r"lumina[-_ ]?(image[-_ ]?)?2"),
    ("lumina-next", r"lumina[-_ ]?next"),
)
METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version", "ss_network_module")


def family_of_names(inputs: Mapping[str, int | None], metadata: Mapping[str, str]) -> str | None:
    """`inputs`: module -> how many values it takes, where that is known. None: nothing says it."""
    flat = {name.replace(".", "_"): width for name, width in inputs.items()}

    def matching(pattern: str) -> list[str]:
        return [name for name in flat if re.search(pattern, name)]

    if matching(UNET):  # whose blocks hold transformer_blocks with attn1 and attn2 too
        widths = [flat[name] for name in matching(r"attn2_to_k$")]
        return next((UNETS[width] for width in widths if width in UNETS), "Stable Diffusion")
    if found := next((family for family, pattern in SIGNS if matching(pattern)), None):
        return found
    for name in matching(r"_attention_(qkv|to_[qkv])$"):
        if (width := flat[name]) in WIDTHS:
            return WIDTHS[width]
    if matching(Z_IMAGE):
        return "z-image"
    said = " ".join(metadata.get(key, "") for key in METADATA_KEYS).lower()
    return next((family for family, pattern in METADATA if re.search(pattern, said)), None)
