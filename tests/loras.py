"""LoRA files as each program writes them, with known factors, and what they add to each weight, computed by hand."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 3
PARTS = ("to_q", "to_k", "to_v")
Deltas = dict[str, torch.Tensor]  # module -> W' - W, float32


@dataclass(frozen=True)
class Format:
    """How a file is written.

    Attributes:
        prefix: before every module's name; flat ones write underscores for dots.
        fused: query, key and value in one, under the authors' names.
        kind: lora, lokr, lokr-split (its factors factored again), loha, diff.
        keys: what the two factors of a plain LoRA are called.
        alpha: stored with every module; None for none.
        dora: "", "peft" (magnitudes [out]), "rows" ([out, 1]) or "columns" ([1, in]).
    """

    prefix: str
    fused: bool = False
    kind: str = "lora"
    keys: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    alpha: float | None = None
    dora: str = ""

    @property
    def flat(self) -> bool:
        return self.prefix.endswith("_")


DOWN_UP = ("lora_down.weight", "lora_up.weight")
DEFAULT = ("lora_A.default.weight", "lora_B.default.weight")
# Every kind of file in the table of facts, and some more.
FORMATS = {
    "transformer.*.lora_A/B (peft)": Format("transformer."),
    "transformer.*.lora_A.default (peft)": Format("transformer.", keys=DEFAULT),
    "transformer.*.lora_down/up, alpha": Format("transformer.", keys=DOWN_UP, alpha=1.5),
    "diffusion_model.*, fused qkv": Format("diffusion_model.", fused=True),
    "diffusion_model.*, split qkv": Format("diffusion_model."),
    "diffusion_model.*, fused qkv, down/up, alpha": Format("diffusion_model.", fused=True, keys=DOWN_UP, alpha=6.0),
    "model.diffusion_model.*, fused qkv": Format("model.diffusion_model.", fused=True),
    "lora_unet_* (kohya), fused qkv, alpha": Format("lora_unet_", fused=True, keys=DOWN_UP, alpha=1.0),
    "lora_unet_* (kohya), split qkv, alpha": Format("lora_unet_", keys=DOWN_UP, alpha=1.0),
    "lora_transformer_* (OneTrainer), alpha": Format("lora_transformer_", keys=DOWN_UP, alpha=2.0),
    "lycoris_*, fused qkv, alpha": Format("lycoris_", fused=True, keys=DOWN_UP, alpha=2.0),
    "lycoris_*, split qkv, alpha": Format("lycoris_", keys=DOWN_UP, alpha=2.0),
    "bare keys, fused qkv": Format("", fused=True),
    "bare keys, .default.": Format("", keys=DEFAULT),
    "base_model.model.* (peft)": Format("base_model.model."),
    "base_model.model.*, fused qkv": Format("base_model.model.", fused=True),
    "DoRA, transformer.*.lora_magnitude_vector": Format("transformer.", dora="peft"),
    "DoRA, diffusion_model.*, lora_magnitude_vector, fused": Format("diffusion_model.", True, dora="peft"),
    "DoRA, lora_unet_*, dora_scale by row, fused": Format("lora_unet_", True, keys=DOWN_UP, alpha=1.0, dora="rows"),
    "DoRA, lycoris_*, dora_scale by column, fused": Format("lycoris_", True, keys=DOWN_UP, alpha=1.0, dora="columns"),
    "LoKr, lycoris_*, fused qkv": Format("lycoris_", True, "lokr", alpha=1.0),
    "LoKr, lycoris_*, factored, split qkv": Format("lycoris_", False, "lokr-split", alpha=1.0),
    "LoKr, diffusion_model.*, factored, fused": Format("diffusion_model.", True, "lokr-split", alpha=2.0),
    "LoKr with DoRA, lycoris_*, fused qkv": Format("lycoris_", True, "lokr", alpha=1.0, dora="rows"),
    "LoHa, lycoris_*, fused qkv": Format("lycoris_", True, "loha", alpha=1.0),
    "whole differences (.diff), fused qkv": Format("diffusion_model.", True, "diff"),
}


def trained(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What trainers train: the attentions' and feed-forwards' matrices. 28 in the tiny Z-Image."""
    wanted = re.compile(r"\.(attention|attn\d?)\.to_(q|k|v|out\.0)\.weight$|\.feed_forward\.\w+\.weight$")
    return {
        name.removesuffix(".weight"): value.detach()
        for name, value in transformer.named_parameters()
        if wanted.search(name)
    }


def stored_modules(weights: dict[str, torch.Tensor], fused: bool) -> dict[str, tuple[str, ...]]:
    """The file's module -> the model's modules whose rows it holds one below the other."""
    if not fused:
        return {name: (name,) for name in weights}
    found: dict[str, tuple[str, ...]] = {}
    for name in weights:
        head, _, last = name.rpartition(".")
        if last == "to_q":
            found[f"{head}.qkv"] = tuple(f"{head}.{part}" for part in PARTS)
        elif last not in PARTS:
            found[name.replace(".to_out.0", ".out")] = (name,)
    return found


def write(
    path: Path, fmt: Format, transformer: torch.nn.Module, seed: int = 0, std: float = 0.2, metadata=None
) -> Deltas:
    """Writes a LoRA with random factors; -> what it adds to each weight at strength 1."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    weights, tensors, deltas = trained(transformer), {}, {}
    for stored, names in stored_modules(weights, fmt.fused).items():
        weight = torch.cat([weights[name] for name in names])
        factors, product, rank = make_factors(fmt, *weight.shape, noise)
        if fmt.prefix == "base_model.model.":  # peft's own names, which say nothing without its settings
            metadata = metadata or peft_settings(r=RANK, lora_alpha=2 * RANK)
            product = product * 2
        if fmt.alpha is not None:
            factors["alpha"] = torch.tensor(fmt.alpha)
            product = product * (fmt.alpha / rank if rank else 1.0)
        if fmt.dora:
            axis = 0 if fmt.dora == "columns" else 1
            norm = (weight + product).norm(dim=axis, keepdim=True)
            magnitude = norm * (1 + noise(*norm.shape))
            factors["lora_magnitude_vector" if fmt.dora == "peft" else "dora_scale"] = (
                magnitude.flatten() if fmt.dora == "peft" else magnitude
            )
            product = magnitude * (weight + product) / norm - weight
        name = fmt.prefix + (stored.replace(".", "_") if fmt.flat else stored)
        tensors.update({f"{name}.{role}": value.contiguous() for role, value in factors.items()})
        deltas.update(zip(names, product.split([len(weights[name]) for name in names])))
    save_file(tensors, path, metadata)
    return deltas


def make_factors(fmt: Format, rows: int, columns: int, noise) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
    """-> the tensors by their names in the file, their product, and the rank that divides alpha (0: none does)."""
    if fmt.kind == "lora":
        down, up = noise(RANK, columns), noise(rows, RANK)
        return dict(zip(fmt.keys, (down, up))), up @ down, RANK
    if fmt.kind == "loha":
        a, b, c, d = noise(rows, RANK), noise(RANK, columns), noise(rows, RANK), noise(RANK, columns)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        return dict(zip(names, (a, b, c, d))), (a @ b) * (c @ d), RANK
    if fmt.kind == "diff":
        whole = noise(rows, columns)
        return {"diff": whole}, whole, 0
    tall, wide = smallest_factor(rows), smallest_factor(columns)
    one = noise(tall, wide)
    if fmt.kind == "lokr":
        two = noise(rows // tall, columns // wide)
        return {"lokr_w1": one, "lokr_w2": two}, torch.kron(one, two), 0
    left, right = noise(rows // tall, RANK), noise(RANK, columns // wide)
    return {"lokr_w1": one, "lokr_w2_a": left, "lokr_w2_b": right}, torch.kron(one, left @ right), RANK


def smallest_factor(number: int) -> int:
    return next(k for k in range(2, number + 1) if number % k == 0)


def peft_settings(**values: object) -> dict[str, str]:
    """The metadata that diffusers writes."""
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in values.items()})}
