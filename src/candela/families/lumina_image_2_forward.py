"""Lumina-Image 2.0's transformer for one set of prompts and one size: Lumina2Transformer2DModel.forward of diffusers,
without what it does anew in every step. The same numbers within rounding; `tests/families/test_parity.py` holds them
to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from candela.families.layers import (
    attend,
    from_patches,
    gated,
    grid,
    mask_beyond,
    modulated_block,
    rms_norm,
    rotate,
    to_patches,
)


class LuminaImage2Forward:
    """Latents and a time to a velocity. The text's part is computed here, once: it does not depend on the time.

    `features` [tokens_i, width] of one prompt per picture, `height` and `width` of the latents."""

    def __init__(self, transformer: Any, features: Sequence[torch.Tensor], height: int, width: int):
        self.transformer = transformer
        device = transformer.x_embedder.bias.device
        lengths = [len(one) for one in features]
        longest = max(lengths)
        self.patches = height * width // 4

        embedder = transformer.time_caption_embed.caption_embedder
        text = torch.nn.utils.rnn.pad_sequence([embedder(one) for one in features], batch_first=True)
        positions = torch.zeros(longest, 3, dtype=torch.int64, device=device)
        positions[:, 0] = torch.arange(longest, device=device)
        text_rotary = _rotary(transformer, positions)[None]
        mask = mask_beyond(lengths, 0, 0, device)
        for block in transformer.context_refiner:
            text = block(text, mask, text_rotary)
        self.text = text

        different = lengths[:1] if min(lengths) == longest else lengths
        self.image_rotary = torch.stack(
            [_rotary(transformer, grid(tokens, height, width, device)) for tokens in different]
        )
        self.rotary = torch.cat([text_rotary.expand(len(different), -1, -1), self.image_rotary], dim=1)
        self.mask = mask_beyond(lengths, 0, self.patches, device)

    def __call__(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """latents [B, C, h, w] in the transformer's precision, time float [1] from noise (0) to picture (1)
        -> velocity, likewise."""
        transformer = self.transformer
        embed = transformer.time_caption_embed
        condition = embed.timestep_embedder(embed.time_proj(time).type_as(latents))
        x = transformer.x_embedder(to_patches(latents))
        for block in transformer.noise_refiner:
            x = block(x, None, self.image_rotary, condition)
        x = torch.cat([self.text, x], dim=1)
        for block in transformer.layers:
            x = block(x, self.mask, self.rotary, condition)
        x = transformer.norm_out(x[:, self.text.shape[1] :], condition)
        return from_patches(x, *latents.shape[2:])


def _rotary(transformer: Any, positions: torch.Tensor) -> torch.Tensor:
    """int64 [S, 3] -> complex64 [S, D / 2]."""
    tables = transformer.rope_embedder.freqs_cis
    each = [table.to(positions.device)[positions[:, axis]] for axis, table in enumerate(tables)]
    return torch.cat(each, dim=-1).to(torch.complex64)


def block_forward(
    block: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    image_rotary_emb: torch.Tensor,
    temb: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lumina2TransformerBlock.forward. hidden_states [B, S, dim], attention_mask bool [B, S], image_rotary_emb
    complex64 [B or 1, S, D / 2], temb [B or 1, 1024]."""
    norm, feed = block.norm1, block.feed_forward
    return modulated_block(
        hidden_states,
        (norm.norm if block.modulation else norm, block.norm2, block.ffn_norm1, block.ffn_norm2),
        norm.linear(norm.silu(temb)) if block.modulation else None,
        lambda x: _attention(block.attn, x, attention_mask, image_rotary_emb),
        lambda x: gated(x, feed.linear_3, feed.linear_1, feed.linear_2),
    )


def _attention(attn: Any, x: torch.Tensor, mask: torch.Tensor | None, rotary: torch.Tensor) -> torch.Tensor:
    query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    width = query.shape[-1] // attn.heads
    query, key, value = (y.unflatten(-1, (-1, width)) for y in (query, key, value))
    query = rotate(rms_norm(query, attn.norm_q.weight, attn.norm_q.eps), rotary)
    key = rotate(rms_norm(key, attn.norm_k.weight, attn.norm_k.eps), rotary)
    return attn.to_out[0](attend(query, key, value, mask, scale=attn.scale))
