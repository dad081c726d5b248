"""The autoencoders: Flux's, of Z-Image and Lumina-Image 2.0, and Stable Diffusion's, of Lumina-Next."""

from __future__ import annotations

from typing import Any

from candela.checkpoints.architectures.architecture import Architecture, Shapes, count

# What no weight tells. 16 channels: Flux's (Stable Diffusion 3's looks the same, but no model here uses it).
# 4 channels: SDXL's (1.5's looks the same, likewise).
SCALES: dict[int, dict[str, Any]] = {
    16: {"scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True},
    4: {"scaling_factor": 0.13025, "shift_factor": None, "force_upcast": True},
}
BLOCKS = [128, 256, 512, 512]


def sizes(shapes: Shapes) -> dict[str, Any]:
    blocks = count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = [shapes[f"encoder.down_blocks.{k}.resnets.0.conv1.weight"][0] for k in range(blocks)]
    return {"latent_channels": shapes["decoder.conv_in.weight"][1], "block_out_channels": widths}


def config(shapes: Shapes) -> dict[str, Any]:
    """Empty for an autoencoder of other widths: its scale and norm groups are in no weight."""
    channels, widths = sizes(shapes).values()
    blocks = len(widths)
    if widths != BLOCKS or channels not in SCALES:
        return {}
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "block_out_channels": widths,
        "layers_per_block": count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "act_fn": "silu",
        "latent_channels": channels,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "decoder.mid_block.attentions.0.to_q.weight" in shapes,
        **SCALES[channels],
    }


def _renames() -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    # The authors count the decoder's blocks from the picture, diffusers from the latents; all have four.
    ups = [(rf"^decoder\.up\.{k}\.", f"decoder.up_blocks.{3 - k}.") for k in range(4)]
    attention = {"q": "to_q", "query": "to_q", "k": "to_k", "key": "to_k", "v": "to_v", "value": "to_v",
                 "proj_out": "to_out.0", "proj_attn": "to_out.0", "norm": "group_norm"}  # fmt: skip
    return (
        *ups,
        (r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1."),
        (r"(_blocks\.\d+)\.block\.", r"\1.resnets."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
        (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
        *((rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in attention.items()),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    )


VAE = Architecture(
    name="autoencoder",
    component="vae",
    library="diffusers",
    class_name="AutoencoderKL",
    anchors=("decoder.conv_in.weight",),
    marks=(
        ("encoder.conv_in.weight",),
        ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
        ("decoder.mid_block.resnets.0.conv1.weight", "decoder.mid.block_1.conv1.weight"),
    ),
    renames=_renames(),
    ignored=(r"^model_ema\.", r"^loss\."),  # left over from training
    config=config,
    sizes=sizes,
)
