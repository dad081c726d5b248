"""What a weight file is in words, and for one that Candela does not know, what it most resembles."""

from __future__ import annotations

import re
from dataclasses import dataclass

from candela.checkpoints.contents import Contents

# Names of tensors by which other models are known. Patterns, looked for in every stored name.
OTHERS = {
    "Stable Diffusion XL (UNet, original names)": (r"label_emb\.0\.0\.", r"input_blocks\.4\.1\.transformer_blocks\.1"),
    "Stable Diffusion 1.5 or 2 (UNet, original names)": (r"input_blocks\.1\.1\.transformer_", r"middle_block\.1\."),
    "a diffusers UNet": (r"down_blocks\.0\.resnets\.0\.conv1\.weight", r"mid_block\.resnets\.0\.time_emb_proj"),
    "Flux (transformer, original names)": (r"double_blocks\.0\.img_attn\.qkv", r"single_blocks\.0\.linear1"),
    "Flux (transformer, diffusers)": (r"single_transformer_blocks\.0\.proj_", r"^transformer_blocks\.0\.attn\.add"),
    "Stable Diffusion 3 (transformer, original names)": (r"joint_blocks\.0\.context_block\.attn\.qkv",),
    "Qwen-Image (transformer)": (r"transformer_blocks\.0\.img_mod\.1\.", r"transformer_blocks\.0\.attn\.add_k_proj"),
    "Wan (video transformer)": (r"blocks\.0\.cross_attn\.k\.", r"blocks\.0\.modulation"),
    "HunyuanVideo (transformer)": (r"txt_in\.individual_token_refiner", r"double_blocks\.0\.img_mod"),
    "PixArt (transformer)": (r"blocks\.0\.scale_shift_table", r"y_embedder\.y_proj"),
    "Sana (transformer)": (r"transformer_blocks\.0\.ff\.conv_inverted", r"caption_projection\.linear_1"),
    "AuraFlow (transformer)": (r"joint_transformer_blocks\.0\.", r"register_tokens"),
    "T5 (text encoder)": (r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",),
    "CLIP (text encoder)": (r"text_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight",),
    "CLIP (text encoder, OpenCLIP names)": (r"transformer\.resblocks\.0\.attn\.in_proj_weight",),
    "a language model of another kind": (r"layers\.0\.self_attn\.q_proj\.weight|blk\.0\.attn_q\.weight",),
    "TAESD (tiny preview decoder)": (r"^(decoder\.)?(layers\.)?1\.weight", r"^(decoder\.)?(layers\.)?3\.conv\.0\."),
    "an upscaler (ESRGAN)": (r"RDB1\.conv1\.weight|body\.0\.rdb1\.conv1\.weight",),
    "a ControlNet": (r"controlnet_cond_embedding\.conv_in|input_hint_block\.0|controlnet_blocks\.0",),
    "an IP-Adapter": (r"ip_adapter\.\d+\.to_k_ip", r"image_proj\."),
    "a LoRA": (r"lora_(A|B|up|down)|lokr_w1|hada_w1_a",),
}  # fmt: skip


@dataclass(frozen=True)
class Resemblance:
    """The nearest model, the share (0 to 1) of its marks that were found, and the tensors that decided."""

    name: str
    share: float
    keys: tuple[str, ...]


def nearest(names: list[str]) -> Resemblance | None:
    """None if nothing fits at all. Of equals, the one with more marks, then the first."""
    best: Resemblance | None = None
    marks = 0
    for name, patterns in OTHERS.items():
        # Compiled here: in a file of 50,000 tensors, looking each pattern up per name took most of the time.
        hits = [next(filter(re.compile(pattern).search, names), None) for pattern in patterns]
        keys = tuple(key for key in hits if key)
        share = len(keys) / len(patterns)
        if keys and (best is None or (share, len(keys)) > (best.share, marks)):
            best, marks = Resemblance(name, share, keys), len(keys)
    return best


def describe(contents: Contents) -> str:
    """A few words for messages: what is in the file."""
    if contents.found:
        return " and ".join(f"a {found.title}" for found in contents.found)
    near = nearest(list(contents.header.tensors))
    if near:
        return f"what looks like {near.name} (by its tensor {near.keys[0][:80]!r})"
    first = ", ".join(repr(name[:60]) for name in list(contents.header.tensors)[:3]) or "none"
    return f"{len(contents.header.tensors)} tensors that belong to no model known here (the first: {first})"
