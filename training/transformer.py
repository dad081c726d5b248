"""Trains the demo's transformer and text encoder together, by flow matching on encoded pictures.

Convention (diffusers' ZImagePipeline): the model is given t = 1 - sigma and its output is
negated, so it learns x0 - noise for the noisy picture (1 - sigma) x0 + sigma noise.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import PreTrainedTokenizerFast, Qwen3Model

from candela.demo.world import Scene, draw

from . import data, text, twin
from .muon import Muon
from .precision import autocast

SHIFT = 3.0
TOKENS_PER_BATCH = 6144
EMA = 0.998
LONG_CAPTIONS = 0.07  # share of batches with captions of 33 to 64 tokens


@dataclass
class Encoded:
    """Pictures of one size as normalised latents, with what they show."""

    latents: torch.Tensor
    scenes: list[Scene]


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, numbers: dict[tuple[int, int], int], seed: int, log=print):
    """Draws `numbers[size]` pictures of each (width, height) and encodes them once.

    -> ({size: Encoded}, shift, scale): latents are (raw - shift) * scale, of mean 0 and deviation 1 overall."""
    rng = random.Random(seed)
    sets: dict[tuple[int, int], Encoded] = {}
    started = time.time()
    for (width, height), number in numbers.items():
        scenes = [data.training_scene(rng) for _ in range(number)]
        latents = []
        for first in range(0, number, 64):
            pictures = [data.to_tensor(draw(s, width, height, rng)) for s in scenes[first : first + 64]]
            with autocast():
                latents.append(vae.encode(torch.stack(pictures)).latent_dist.mean.float())
        sets[width, height] = Encoded(torch.cat(latents), scenes)
        log(f"encoded {number} pictures of {width}x{height} {time.time() - started:.0f} s")
    sample = torch.cat([s.latents[:1024].flatten() for s in sets.values()])
    shift, scale = sample.mean().item(), 1 / sample.std().item()
    for encoded in sets.values():
        encoded.latents = (encoded.latents - shift) * scale
    return sets, shift, scale


def batch_of(sets, tokenizer, rng: random.Random):
    """-> latents [B, 16, h, w], token ids [B, L], padding mask [B, L]; one size and one caption length per batch."""
    size = rng.choices(list(data.BUCKETS), list(data.BUCKETS.values()))[0]
    long = rng.random() < LONG_CAPTIONS
    length = 64 if long else 32
    encoded = sets[size]
    tokens = (size[0] // 16) * (size[1] // 16)
    number = TOKENS_PER_BATCH // (-(-tokens // 32) * 32 + length) // 8 * 8
    rows = rng.sample(range(len(encoded.scenes)), number)
    ids = text.token_ids(tokenizer, [data.training_caption(encoded.scenes[k], rng, long) for k in rows])
    for k, row in enumerate(rows):
        while len(ids[k]) > length:
            ids[k] = text.token_ids(tokenizer, [data.training_caption(encoded.scenes[row], rng, long)])[0]
    return encoded.latents[rows], *text.pad(ids, length)


def optimizers(transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, the ends, biases and norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in [*transformer.named_parameters(), *text_encoder.named_parameters()]:
        inner = "layers." in name or "refiner." in name
        (matrices if inner and parameter.ndim == 2 else others).append(parameter)
    return [
        Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def emphasis(latents: torch.Tensor) -> torch.Tensor:
    """Weights [B, 1, h, w] of mean 1 per picture: patches that hold a piece of the shape weigh more, those of a
    small shape most (3 to 8 times the background's).

    A small shape covers 4 of 64 patches. Unweighted, what the model learns of it drowns in the background."""
    patches = torch.nn.functional.pixel_unshuffle(latents, twin.PATCH)
    background = patches.flatten(2).median(-1).values[..., None, None]
    shape = ((patches - background).square().mean(1, keepdim=True) > 0.3).float()
    share = shape.mean((1, 2, 3), keepdim=True)
    weights = 1 + shape * ((0.75 / share.clamp(min=1e-3)).clamp(3, 8) - 1)
    weights = weights / weights.mean((1, 2, 3), keepdim=True)
    return weights.repeat_interleave(twin.PATCH, 2).repeat_interleave(twin.PATCH, 3)


class State:
    """Models, averages and optimizers as one file, so that a run can be cut off and go on exactly."""

    def __init__(self, *parts: Any):
        self.parts = parts

    def save(self, path: Path, step: int, rng: random.Random) -> None:
        content = {
            "step": step,
            "parts": [part.state_dict() for part in self.parts],
            "random": (rng.getstate(), torch.get_rng_state()),
        }
        torch.save(content, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path, rng: random.Random) -> int:
        content = torch.load(path, weights_only=False)
        for part, state in zip(self.parts, content["parts"]):
            if state is not None:
                part.load_state_dict(state)
        if content["random"] is not None:
            rng.setstate(content["random"][0])
            torch.set_rng_state(content["random"][1])
        return content["step"]


def learning_rate(step: int, steps: int) -> float:
    """Factor: warm-up over 100 steps, flat for half, then linear to 2 %."""
    warm = min(1.0, (step + 1) / 100)
    return warm * min(1.0, 1.0 - 0.98 * (step / steps - 0.5) / 0.5)


def train(
    sets: dict[tuple[int, int], Encoded],
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    checkpoint: Path,
    log=print,
    every: int = 500,
) -> tuple[ZImageTransformer2DModel, Qwen3Model]:
    """-> the averaged (EMA) transformer and text encoder. Everything needed to go on from here is written
    to `checkpoint` every `every` steps, and read from there if it exists."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    text_encoder = text.build_text_encoder()
    text_encoder.set_attn_implementation("eager")  # its backward pass is the faster one on the CPU, as in the twin
    transformer = twin.build_transformer(text_encoder.config.hidden_size)
    averages = copy.deepcopy(transformer).eval(), copy.deepcopy(text_encoder).eval()
    pairs = [
        (a, p)
        for average, model in zip(averages, (transformer, text_encoder))
        for a, p in zip(average.parameters(), model.parameters())
    ]
    opts = optimizers(transformer, text_encoder)
    base = [opt.param_groups[0]["lr"] for opt in opts]
    block = torch.compile(twin.block, dynamic=True)
    state = State(transformer, text_encoder, *averages, *opts)
    first = state.load(checkpoint, rng) if checkpoint.is_file() else 0
    started, running = time.time(), None
    for step in range(first, steps):
        latents, ids, padding = batch_of(sets, tokenizer, rng)
        number = len(latents)
        u = (torch.randperm(number) + torch.rand(number)) / number  # stratified
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        noise = torch.randn_like(latents)
        s = sigma[:, None, None, None]
        with autocast():
            features = text_encoder(ids, output_hidden_states=True).hidden_states[-2]
            out = twin.forward(transformer, (1 - s) * latents + s * noise, 1 - sigma, features, padding, block)
        error = (out - (latents - noise)).square()
        loss = (emphasis(latents) * error).mean()
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in pairs], 1.0)
        factor = learning_rate(step, steps)
        for opt, lr in zip(opts, base):
            opt.param_groups[0]["lr"] = lr * factor
            opt.step()
        with torch.no_grad():
            decay = min(EMA, (step + 1) / (step + 10))
            torch._foreach_lerp_([a for a, _ in pairs], [p for _, p in pairs], 1 - decay)
        plain = error.mean().item()
        running = plain if running is None else 0.98 * running + 0.02 * plain
        if step % 50 == 0 or step == steps - 1:
            log(f"transformer {step}/{steps} loss {running:.4f} {time.time() - started:.0f} s")
        if (step + 1) % every == 0 or step == steps - 1:
            state.save(checkpoint, step + 1, rng)
    return averages
