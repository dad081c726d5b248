"""Tiny real models with random weights, one per family, saved as ordinary diffusers folders."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def randomize(module: torch.nn.Module, seed: int, std: float = 0.08) -> torch.nn.Module:
    """Fills every matrix with noise, so that no output is trivially zero; vectors stay, but uninitialised ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2 or "pad_token" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def tokenizer(chat: bool = False, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE({token: k for k, token in enumerate(special + alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special)
    if bos:
        from tokenizers.processors import TemplateProcessing

        bpe.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT if chat else None,
    )


def vae(channels: int, seed: int, shift: float | None, scaling: float, blocks: int = 4) -> AutoencoderKL:
    """One latent is 2**(blocks - 1) pixels a side."""
    return randomize(
        AutoencoderKL(
            latent_channels=channels, block_out_channels=[4, 4, 8, 8, 8][:blocks], layers_per_block=1,
            norm_num_groups=2,
            down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks,
            use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
            shift_factor=shift, scaling_factor=scaling,
        ),
        seed, std=0.2,
    )  # fmt: skip


def z_image(folder: Path, layers: int = 2, blocks: int = 4) -> Path:
    """Base's shift of 6, so its defaults are those of Base."""
    transformer = ZImageTransformer2DModel(
        dim=32, n_layers=layers, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=261, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=1024,
        )
    )  # fmt: skip
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(16, 1, 0.1159, 0.3611, blocks),
        text_encoder=randomize(text_encoder, 2),
        tokenizer=tokenizer(chat=True),
        transformer=randomize(transformer, 3),
    ).save_pretrained(folder)
    return folder


def lumina_image_2(folder: Path, bos: bool = True) -> Path:
    transformer = Lumina2Transformer2DModel(
        sample_size=16, in_channels=16, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(300, 512, 512), cap_feat_dim=16,
    )  # fmt: skip
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=261, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=512, sliding_window=64,
        )
    )  # fmt: skip
    Lumina2Pipeline(
        transformer=randomize(transformer, 4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(16, 5, 0.1159, 0.3611),
        text_encoder=randomize(text_encoder, 6),
        tokenizer=tokenizer(bos=bos),
    ).save_pretrained(folder)
    return folder


def lumina_next(folder: Path, bos: bool = True) -> Path:
    transformer = LuminaNextDiT2DModel(
        sample_size=16, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=2, num_kv_heads=1,
        multiple_of=8, cross_attention_dim=16,
    )  # fmt: skip
    text_encoder = GemmaModel(
        GemmaConfig(
            vocab_size=261, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
        )
    )  # fmt: skip
    LuminaPipeline(
        transformer=randomize(transformer, 7),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, 8, None, 0.13025),
        text_encoder=randomize(text_encoder, 9),
        tokenizer=tokenizer(bos=bos),
    ).save_pretrained(folder)
    return folder


def wide(family: str, folder: Path) -> Path:
    """A model of the family whose matrices have rows of 256 and more, as quantised formats want them, with weights
    that bfloat16 holds exactly."""
    text = {
        "vocab_size": 261, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
    }  # fmt: skip
    shared = {"sample_size": 16, "num_layers": 1, "num_kv_heads": 2, "multiple_of": 256}
    if family == "z-image":
        transformer = ZImageTransformer2DModel(
            dim=256, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=256,
            axes_dims=[16, 24, 24], axes_lens=[1536, 512, 512],
        )  # fmt: skip
        encoder, pipeline = Qwen3Model(Qwen3Config(**text)), ZImagePipeline
    elif family == "lumina-image-2":
        transformer = Lumina2Transformer2DModel(
            in_channels=16, hidden_size=768, num_refiner_layers=1, num_attention_heads=8,
            axes_dim_rope=(32, 32, 32), axes_lens=(300, 512, 512), cap_feat_dim=256, **shared,
        )  # fmt: skip
        encoder, pipeline = Gemma2Model(Gemma2Config(**text, query_pre_attn_scalar=64)), Lumina2Pipeline
    else:
        transformer = LuminaNextDiT2DModel(
            in_channels=4, hidden_size=256, num_attention_heads=4, cross_attention_dim=256, **shared
        )
        with torch.no_grad():  # the authors' one set of queries is two in diffusers
            for layer in transformer.layers:
                layer.gate.fill_(0.5)
        encoder, pipeline = GemmaModel(GemmaConfig(**text)), LuminaPipeline
    channels = 4 if family == "lumina-next" else 16
    randomize(transformer, 11, std=0.02)  # as such models are initialised
    randomize(encoder, 12, std=0.02)
    if family == "lumina-next":
        with torch.no_grad():
            for layer in transformer.layers:
                layer.attn2.to_q.weight.copy_(layer.attn1.to_q.weight)
                layer.attn2.norm_q.load_state_dict(layer.attn1.norm_q.state_dict())
    pipeline(
        transformer=transformer.bfloat16(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(channels, 13, 0.1159 if channels == 16 else None, 0.3611).bfloat16(),
        text_encoder=encoder.bfloat16(),
        tokenizer=tokenizer(chat=family == "z-image", bos=family != "z-image"),
    ).save_pretrained(folder)
    return folder
