"""Trains the demo's autoencoder: AutoencoderKL, 16 latent channels at factor 8."""

from __future__ import annotations

import math
import random
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from candela.demo.world import draw

from . import data
from .muon import Muon
from .precision import autocast

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "sample_size": 128,
}


def near_identity(vae: AutoencoderKL) -> None:
    """Starts residual branches small and resampling convolutions as copies: L1 0.07 after 160 steps, against 0.29."""
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        out, inp = module.weight.shape[:2]
        with torch.no_grad():
            if name.endswith("conv2"):
                module.weight.mul_(0.1)
            elif "sampler" in name or "shortcut" in name:
                module.weight.mul_(0.3)
                centre = module.weight.shape[-1] // 2
                for k in range(max(out, inp)):
                    module.weight[k % out, k % inp, centre, centre] += min(1.0, out / inp)


def optimizers(vae: AutoencoderKL) -> list[torch.optim.Optimizer]:
    """Muon for convolutions; biases, norms and the outermost layers get AdamW."""
    outer = {"encoder.conv_in.weight", "decoder.conv_out.weight", "encoder.conv_out.weight"}
    trained = {n: p for n, p in vae.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in trained.items() if p.ndim == 4 and n not in outer}
    others = [p for n, p in trained.items() if n not in matrices]
    return [
        Muon(list(matrices.values()), lr=0.01),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0),
    ]


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(vae: AutoencoderKL, images: torch.Tensor, noise_level: float) -> tuple[torch.Tensor, float]:
    posterior = vae.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
    # The decoder must forgive what the transformer gets slightly wrong.
    latents = latents + torch.randn_like(mean) * mean.detach().std() * noise_level * torch.rand(len(mean), 1, 1, 1)
    out = vae.decode(latents).sample.float()
    l1 = (out - images).abs().mean()
    edge = sum(((a - b).abs().mean() for a, b in zip(edges(out), edges(images))), start=torch.zeros(()))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return l1 + edge + 2e-4 * kl, l1.item()


def schedule(step: int, steps: int) -> float:
    """Learning rate's factor: warm-up over 50 steps, then a cosine to 1 %."""
    return min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 0.01


def picture(rng: random.Random, clutter: float, weights: dict[str, float] = data.SHAPE_WEIGHTS) -> torch.Tensor:
    """One training picture of 128x128; a share of `clutter` shows more than the demo's own world."""
    if rng.random() < clutter:
        return data.to_tensor(data.clutter(128, 128, rng))
    return data.to_tensor(draw(data.training_scene(rng, weights), 128, 128, rng))


def descend(opts: list[torch.optim.Optimizer], base: list[float], factor: float, loss: torch.Tensor) -> None:
    for opt in opts:
        opt.zero_grad()
    loss.backward()
    parameters = [p for opt in opts for group in opt.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for opt, lr in zip(opts, base):
        opt.param_groups[0]["lr"] = lr * factor
        opt.step()


def train(steps: int, seed: int, log=print) -> AutoencoderKL:
    """Crops of 64x64 for the first 70 %, then whole pictures: the same work per step."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = AutoencoderKL(**CONFIG)
    near_identity(vae)
    with torch.no_grad():
        vae.encoder.conv_out.bias[16:] = -5.0  # little posterior noise at the start
    opts = optimizers(vae)
    base = [opt.param_groups[0]["lr"] for opt in opts]
    started = time.time()
    for step in range(steps):
        whole = step > 0.7 * steps
        pictures = []
        for _ in range(4 if whole else 16):
            x = picture(rng, clutter=0.3)
            if not whole:
                i, j = rng.randrange(65), rng.randrange(65)
                x = x[:, i : i + 64, j : j + 64]
            pictures.append(x)
        with autocast():
            loss, l1 = loss_of(vae, torch.stack(pictures), noise_level=0.15 if step > 0.2 * steps else 0.0)
        descend(opts, base, schedule(step, steps), loss)
        if step % 50 == 0 or step == steps - 1:
            log(f"vae {step}/{steps} loss {loss.item():.4f} l1 {l1:.4f} {time.time() - started:.0f} s")
    return vae.eval()


def sharpen(vae: AutoencoderKL, steps: int, seed: int, log=print) -> AutoencoderKL:
    """Trains the decoder on, alone: the encoder and so the latents stay, the tips of stars grow sharp.

    The checker stretches its template over the shape's box, so a rounded tip costs overlap twice."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae.encoder.requires_grad_(False)
    stars = {**data.SHAPE_WEIGHTS, "star": 5.0, "diamond": 1.5}
    opts = optimizers(vae)
    base = [0.4 * opt.param_groups[0]["lr"] for opt in opts]
    started = time.time()
    for step in range(steps):
        weights = data.SHAPE_WEIGHTS if step < 0.7 * steps else stars
        images = torch.stack([picture(rng, clutter=0.1, weights=weights) for _ in range(6)])
        with autocast():
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.mean.float()
            noise = torch.randn_like(latents) * latents.std() * 0.15 * torch.rand(len(latents), 1, 1, 1)
            out = vae.decode(latents + noise).sample.float()
        # Pixels on an edge weigh more: they are few, and they are the shape.
        weight = 1 + 8 * edge_map(images)
        loss = (weight * (out - images).abs()).mean()
        descend(opts, base, schedule(step, steps), loss)
        if step % 50 == 0 or step == steps - 1:
            log(f"decoder {step}/{steps} loss {loss.item():.4f} {time.time() - started:.0f} s")
    vae.encoder.requires_grad_(True)
    return vae.eval()


def edge_map(images: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W]: 1 within two pixels of a change of colour, 0 elsewhere."""
    low, high = -F.max_pool2d(-images, 5, 1, 2), F.max_pool2d(images, 5, 1, 2)
    return ((high - low).amax(1, keepdim=True) > 0.2).float()
