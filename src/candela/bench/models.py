"""Z-Image in any size with random weights, and the bare diffusers pipeline over the same ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints import Checkpoint, Components, Part, read_checkpoint
from candela.checkpoints.building import default_dtype
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.engine import Engine
from candela.families import family_of

TURBO = {"shift": 3.0}  # of the scheduler: 8 steps without guidance


@dataclass(frozen=True)
class Dimensions:
    """What one model's components are built from, where they are not Z-Image's own."""

    name: str
    transformer: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)


# Qwen3-4B and the autoencoder of Flux, as Z-Image is published with them.
QWEN = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
FLUX = {
    "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32,
    "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611,
}  # fmt: skip
Z_IMAGE = {"axes_lens": [1536, 512, 512]}

FULL = Dimensions("Z-Image in full size")
MIDDLE = Dimensions(
    "mid-size Z-Image",
    {"dim": 768, "n_layers": 12, "n_refiner_layers": 2, "n_heads": 6, "n_kv_heads": 6, "cap_feat_dim": 768},
    {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 640,
    },
    {"block_out_channels": [32, 64, 128, 128]},
)  # fmt: skip
TINY = Dimensions(
    "tiny Z-Image",
    {
        "dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32,
        "axes_dims": [8, 12, 12],
    },
    {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 640,
    },
    {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One model twice: as Candela loads it, and as diffusers does. The large weights are in memory once."""

    checkpoint: Checkpoint
    engine: Engine
    pipeline: Any


def random_pair(dimensions: Dimensions, device: torch.device, dtype: torch.dtype) -> Pair:
    """Made on `device`, in `dtype`, from a fixed seed. Prompts are tokenized as the embedded model does."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    with default_dtype(dtype), device:
        transformer = ZImageTransformer2DModel(**Z_IMAGE | dimensions.transformer)
        text_encoder = Qwen3Model(Qwen3Config(**QWEN | {"tie_word_embeddings": True} | dimensions.text_encoder))
        vae = AutoencoderKL(
            **FLUX | dimensions.vae,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        )
    for seed, module in enumerate((transformer, text_encoder, vae)):
        fill(module, seed)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer", local_files_only=True)
    scheduler = FlowMatchEulerDiscreteScheduler(**TURBO)
    pipeline = ZImagePipeline(
        transformer=twin(transformer),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=copy.deepcopy(vae),
        scheduler=copy.deepcopy(scheduler),
    )
    components = Components(
        {
            "transformer": transformer, "text_encoder": text_encoder, "tokenizer": tokenizer, "vae": vae,
            "scheduler": scheduler,
        }
    )  # fmt: skip
    checkpoint = Checkpoint(dimensions.name, Path(dimensions.name), "ZImagePipeline", _parts(components))
    family = family_of(checkpoint)
    family.prepare(components)
    return Pair(checkpoint, Engine(checkpoint, family, components, device, dtype, 0.0), _quiet(pipeline))


def demo_pair() -> Pair:
    """The embedded model, loaded by each side in its own way."""
    from diffusers import ZImagePipeline

    engine = Engine.load("demo", device="cpu")
    return Pair(
        read_checkpoint("demo"), engine, _quiet(ZImagePipeline.from_pretrained(DEMO_FOLDER, dtype=torch.float32))
    )


def _parts(components: Components) -> dict[str, Part]:
    parts = {}
    for name, component in components.by_name.items():
        library = "diffusers" if hasattr(component, "register_to_config") else "transformers"
        config: Any = getattr(component, "config", {})
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        place = DEMO_FOLDER / name if name == "tokenizer" else Path(name)
        parts[name] = Part(place, library, type(component).__name__, values)
    return parts


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int) -> None:
    """Matrices with noise of 1 / sqrt(values that go into each output), which keeps activations at their size."""
    module.eval().requires_grad_(False)
    parameters = list(module.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    for parameter in parameters:
        if parameter.ndim >= 2:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


def twin(module: Any) -> Any:
    """Another module of the same class over the same parameters: what is done to the one's code leaves the other's."""
    with torch.device("meta"):
        other = type(module).from_config(module.config)
    other.load_state_dict(module.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
