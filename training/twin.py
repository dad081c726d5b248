"""A batched twin of ZImageTransformer2DModel.forward, for training.

Diffusers' forward takes lists of pictures and prompts of any length and rebuilds
padding, positions and masks for each; in a training batch all lengths agree, so the
same computation is a few dense operations that torch.compile can fuse. The weights
are the diffusers model's own; `tests/training/test_twin.py` holds the two to the same output.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel

MULTIPLE = 32  # captions and pictures are padded to this many tokens
PATCH = 2


def build_transformer(text_width: int) -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(
        all_patch_size=[PATCH], all_f_patch_size=[1], in_channels=16, dim=160, n_layers=5, n_refiner_layers=1,
        n_heads=5, n_kv_heads=5, cap_feat_dim=text_width, axes_dims=[8, 12, 12], axes_lens=[1536, 512, 512],
        norm_eps=1e-5, qk_norm=True, rope_theta=256.0, t_scale=1000.0,
    )  # fmt: skip
    final = model.all_final_layer["2-1"]
    torch.nn.init.zeros_(final.linear.weight)
    torch.nn.init.zeros_(final.linear.bias)
    torch.nn.init.normal_(model.x_pad_token, std=0.02)
    torch.nn.init.normal_(model.cap_pad_token, std=0.02)
    return model


@functools.lru_cache(maxsize=64)
def rotary(axes: tuple[int, ...], theta: float, caption: int, rows: int, columns: int, padding: int):
    """cos and sin [1, S, 1, head_dim / 2] for picture tokens, picture padding, then caption tokens."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    picture = torch.stack([torch.full_like(y, caption + 1), y, x], dim=-1).reshape(-1, 3)
    blank = torch.zeros(padding, 3, dtype=torch.long)
    text = torch.stack([torch.arange(1, caption + 1), *[torch.zeros(caption, dtype=torch.long)] * 2], dim=-1)
    positions = torch.cat([picture, blank, text]).double()
    angles = [
        positions[:, k : k + 1] / theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        for k, width in enumerate(axes)
    ]
    angle = torch.cat(angles, dim=-1).float()[None, :, None]
    return angle.cos(), angle.sin()


def _rms(x: torch.Tensor, norm: Any) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def block(layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, adaln: torch.Tensor | None):
    """One ZImageTransformerBlock on x [B, S, D]; adaln [B, D] or None where the layer has no modulation."""
    if adaln is None:
        scale_msa = gate_msa = scale_mlp = gate_mlp = None
    else:
        scale_msa, gate_msa, scale_mlp, gate_mlp = layer.adaLN_modulation(adaln).float().unsqueeze(1).chunk(4, dim=2)
    attn = layer.attention
    h = _rms(x, layer.attention_norm1)
    h = h if scale_msa is None else h * (1 + scale_msa)
    q, k, v = (f(h).unflatten(-1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
    q = _rotate(_rms(q, attn.norm_q), cos, sin).to(v.dtype)
    k = _rotate(_rms(k, attn.norm_k), cos, sin).to(v.dtype)
    # Written out: on the CPU the backward pass of the fused attention costs as much as all the rest together.
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
    out = scores.float().softmax(-1).to(v.dtype) @ v.transpose(1, 2)
    out = _rms(attn.to_out[0](out.transpose(1, 2).flatten(2)), layer.attention_norm2)
    x = x + (out if gate_msa is None else gate_msa.tanh() * out)
    h = _rms(x, layer.ffn_norm1)
    h = h if scale_mlp is None else h * (1 + scale_mlp)
    ff = layer.feed_forward
    out = _rms(ff.w2(F.silu(ff.w1(h)) * ff.w3(h)), layer.ffn_norm2)
    return x + (out if gate_mlp is None else gate_mlp.tanh() * out)


def forward(
    model: ZImageTransformer2DModel,
    latents: torch.Tensor,
    t: torch.Tensor,
    text: torch.Tensor,
    text_padding: torch.Tensor,
    block=block,
) -> torch.Tensor:
    """latents [B, 16, h, w], t [B] in 0 (noise) to 1, text [B, L, width], text_padding [B, L] -> [B, 16, h, w]."""
    batch, channels, height, width = latents.shape
    rows, columns, caption = height // PATCH, width // PATCH, text.shape[1]
    tokens = rows * columns
    padding = -tokens % MULTIPLE
    cos, sin = rotary(tuple(model.axes_dims), model.rope_theta, caption, rows, columns, padding)
    adaln = model.t_embedder(t * model.t_scale)

    x = latents.view(batch, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(batch, tokens, -1)
    x = model.all_x_embedder["2-1"](x).float()
    x = torch.cat([x, model.x_pad_token.expand(batch, padding, -1)], dim=1)
    for layer in model.noise_refiner:
        x = block(layer, x, cos[:, : tokens + padding], sin[:, : tokens + padding], adaln)

    text = model.cap_embedder(text).float()
    text = torch.where(text_padding[..., None], model.cap_pad_token, text)
    for layer in model.context_refiner:
        text = block(layer, text, cos[:, tokens + padding :], sin[:, tokens + padding :], None)

    x = torch.cat([x, text], dim=1)
    for layer in model.layers:
        x = block(layer, x, cos, sin, adaln)
    x = model.all_final_layer["2-1"](x[:, :tokens], c=adaln).float()
    x = x.view(batch, rows, columns, PATCH, PATCH, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, height, width)
