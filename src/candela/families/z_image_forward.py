"""Z-Image's transformer for one set of prompts and one size: ZImageTransformer2DModel.forward of diffusers, without
what it does anew in every step. The same numbers within rounding; `tests/families/test_parity.py` holds them to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from candela.families.layers import (
    attend,
    from_patches,
    gated,
    grid,
    library_forward,
    mask_beyond,
    modulated_block,
    rms_norm,
    rotate,
    to_patches,
)

MULTIPLE = 32  # tokens: of text, and of patches, as the model was trained


class ZImageForward:
    """Latents and a time to a velocity. The text's part is computed here, once: it does not depend on the time.

    `features` [tokens_i, width] of one prompt per picture, `height` and `width` of the latents."""

    def __init__(self, transformer: Any, features: Sequence[torch.Tensor], height: int, width: int):
        self.transformer = transformer
        device = transformer.cap_pad_token.device
        own = [_padded(len(one)) for one in features]
        longest = max(own)
        self.patches = height * width // 4
        extra = -self.patches % MULTIPLE

        embedded = torch.nn.utils.rnn.pad_sequence(
            [_with_padding(transformer.cap_embedder(one), transformer.cap_pad_token) for one in features],
            batch_first=True,
        )
        positions = torch.zeros(longest, 3, dtype=torch.int64, device=device)
        positions[:, 0] = torch.arange(1, longest + 1, device=device)
        text_rotary = transformer.rope_embedder(positions)[None]
        mask = mask_beyond(own, 0, 0, device)
        for block in transformer.context_refiner:
            embedded = block(embedded, mask, text_rotary)
        self.text = embedded

        def image_rotary(text_tokens: int) -> torch.Tensor:
            of_padding = torch.zeros(extra, 3, dtype=torch.int64, device=device)
            return transformer.rope_embedder(torch.cat([grid(text_tokens + 1, height, width, device), of_padding]))

        agree = min(own) == longest
        self.image_rotary = torch.stack([image_rotary(tokens) for tokens in (own[:1] if agree else own)])
        self.rotary = torch.cat([self.image_rotary, text_rotary.expand(len(self.image_rotary), -1, -1)], dim=1)
        self.mask = mask_beyond(own, self.patches + extra, 0, device)
        self.padding = transformer.x_pad_token.expand(len(features), extra, -1)

    def __call__(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """latents [B, C, h, w] in the transformer's precision, time float [1] from noise (0) to picture (1)
        -> velocity, likewise."""
        transformer = self.transformer
        condition = transformer.t_embedder(time * transformer.t_scale).type_as(latents)
        x = transformer.all_x_embedder["2-1"](to_patches(latents))
        x = torch.cat([x, self.padding], dim=1)
        for block in transformer.noise_refiner:
            x = block(x, None, self.image_rotary, condition)
        x = torch.cat([x, self.text], dim=1)
        for block in transformer.layers:
            x = block(x, self.mask, self.rotary, condition)
        x = transformer.all_final_layer["2-1"](x[:, : self.patches], condition)
        return from_patches(x, *latents.shape[2:])


def _padded(tokens: int) -> int:
    return tokens + -tokens % MULTIPLE


def _with_padding(tokens: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
    """[n, dim] -> [n rounded up to a multiple of 32, dim], filled with the model's own padding token."""
    return torch.cat([tokens, pad.expand(_padded(len(tokens)) - len(tokens), -1)])


def block_forward(
    block: Any,
    x: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    freqs_cis: torch.Tensor | None = None,
    adaln_input: torch.Tensor | None = None,
    *per_token: Any,
    **named: Any,
) -> torch.Tensor:
    """ZImageTransformerBlock.forward. x [B, S, dim], attn_mask bool [B, S], freqs_cis complex64 [B or 1, S, D / 2],
    adaln_input [B or 1, 256]."""
    if per_token or named:  # Omni's modulation of each token
        return library_forward(block, x, attn_mask, freqs_cis, adaln_input, *per_token, **named)
    feed = block.feed_forward
    return modulated_block(
        x,
        (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2),
        block.adaLN_modulation(adaln_input) if block.modulation else None,
        lambda y: _attention(block.attention, y, attn_mask, freqs_cis),
        lambda y: gated(y, feed.w3, feed.w1, feed.w2),
    )


def _attention(attn: Any, x: torch.Tensor, mask: torch.Tensor | None, rotary: torch.Tensor | None) -> torch.Tensor:
    query, key, value = (to(x).unflatten(-1, (attn.heads, -1)) for to in (attn.to_q, attn.to_k, attn.to_v))
    if attn.norm_q is not None:
        query, key = (rms_norm(y, n.weight, n.eps) for y, n in ((query, attn.norm_q), (key, attn.norm_k)))
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    return attn.to_out[0](attend(query, key, value, mask, attn.processor._attention_backend))
