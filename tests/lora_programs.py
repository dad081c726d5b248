"""LoRAs as the programs themselves train and save them, and the pictures that come of their own forward.

peft, LyCORIS and diffusers run here. Of those that cannot be installed the names and the scales were read: kohya's
sd-scripts (networks/lora_lumina.py), musubi-tuner (convert_lora.py, networks/convert_z_image_lora_to_comfy.py,
networks/lokr.py), OneTrainer (modules/util/convert_lora_util.py, modules/module/LoRAModule.py), ai-toolkit
(toolkit/network_mixins.py, toolkit/models/lokr.py, toolkit/models/DoRA.py), DiffSynth-Studio
(diffsynth/diffusion/training_module.py), SimpleTuner (simpletuner/helpers/training/lora_format.py), diffusion-pipe
(models/lumina_2.py); factors that LyCORIS or peft trained are written under those names.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lycoris.kohya
import lycoris.logging
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from candela import Engine, Lora, Request

lycoris.logging.logger.setLevel("ERROR")
PROMPT = "a red star"
SIZE, STEPS, SEED = 64, 2, 3
# What trainers train: the matrices of attention and feed-forward. 28 in the tiny Z-Image.
TARGETS = r".*\.(attention|attn)\.to_(q|k|v|out\.0)|.*\.feed_forward\.(w|linear_)\d"
Tensors = dict[str, torch.Tensor]


class Bench:
    """A tiny model in Candela and in the bare pipeline, and one call of its transformer to train with."""

    def __init__(self, folder: Path):
        self.engine = Engine.load(folder, device="cpu")
        self.pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.base = self.pipeline.transformer.requires_grad_(False)
        self.call: dict[str, Any] = {}
        hook = self.base.register_forward_pre_hook(
            lambda _, arguments, named: self.call.update(arguments=arguments, named=named), with_kwargs=True
        )
        self.plain = self.theirs(self.base)
        hook.remove()

    def transformer(self) -> torch.nn.Module:
        """One to change."""
        return copy.deepcopy(self.base)

    def train(self, transformer: torch.nn.Module, parameters: Any, rate: float = 0.03) -> None:
        """A few steps towards noise: no factor is nought after them."""
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, rate)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            out = transformer(*self.call["arguments"], **self.call["named"])[0]
            out = torch.stack(list(out)) if isinstance(out, list | tuple) else out
            loss = (out - torch.randn(out.shape, generator=generator)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(bool((parameter != 0).any()) for parameter in parameters)

    def theirs(self, transformer: torch.nn.Module) -> np.ndarray:
        """The bare pipeline's picture with `transformer`."""
        self.pipeline.transformer = transformer.eval()
        with torch.no_grad():
            image = self.pipeline(
                PROMPT, width=SIZE, height=SIZE, num_inference_steps=STEPS, guidance_scale=0.0,
                generator=torch.Generator("cpu").manual_seed(SEED),
            ).images[0]  # fmt: skip
        return np.asarray(image, dtype=int)

    def merged(self, deltas: Tensors) -> np.ndarray:
        """The bare pipeline's picture with `deltas` added to its weights, module by module."""
        transformer = self.transformer()
        for name, delta in deltas.items():
            transformer.get_submodule(name).weight += delta
        return self.theirs(transformer)

    def ours(self, path: Path, strength: float = 1.0) -> np.ndarray:
        request = Request(PROMPT, width=SIZE, height=SIZE, steps=STEPS, guidance=0.0, seed=SEED)
        self.engine.set_loras([Lora(path, strength)])
        try:
            return np.asarray(self.engine.generate(request).images[0], dtype=int)
        finally:
            self.engine.set_loras([])


def with_peft(bench: Bench, folder: Path, config: Any, converted: bool = False) -> tuple[Path, np.ndarray]:
    """Trained with peft and saved by it -> its file, and the picture of its own forward.

    `converted`: as an ordinary LoRA, whatever it started from."""
    torch.manual_seed(0)
    model = get_peft_model(bench.transformer(), config)
    initial = str(folder / "initial") if converted else None
    if initial:
        model.save_pretrained(initial)
    bench.train(model.get_base_model(), model.parameters())
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=initial)
    return folder / "adapter_model.safetensors", bench.theirs(model.get_base_model())


def with_lycoris(
    bench: Bench, folder: Path, algo: str, dim: int, alpha: float, kohya: bool = False, **options: Any
) -> tuple[Path, np.ndarray]:
    """Trained with LyCORIS and saved by it -> its file, and the picture of its own forward.

    `kohya`: through its module for kohya's scripts, which knows more options."""
    preset = folder / "preset.toml"
    preset.write_text('enable_conv = false\nunet_target_module = ["ZImageTransformerBlock"]\n' if kohya else BLOCKS)
    torch.manual_seed(0)
    transformer = bench.transformer()
    options |= {"algo": algo, "preset": str(preset)}
    if kohya:
        network = lycoris.kohya.create_network(1.0, dim, alpha, None, [], transformer, **options)
        network.apply_to([], transformer, False, True)
    else:
        network = lycoris.create_lycoris(transformer, 1.0, linear_dim=dim, linear_alpha=alpha, **options)
        network.apply_to()
    bench.train(transformer, network.parameters())
    path = folder / "lycoris.safetensors"
    network.save_weights(str(path), torch.float32, {})
    return path, bench.theirs(transformer)


BLOCKS = 'enable_conv = false\ntarget_module = ["ZImageTransformerBlock"]\n'


def with_diffusers(bench: Bench, folder: Path, config: Any) -> tuple[Path, np.ndarray]:
    """An adapter of the pipeline's transformer, saved with `save_lora_weights` and its metadata."""
    torch.manual_seed(0)
    transformer = bench.transformer()
    transformer.add_adapter(config)
    bench.train(transformer, transformer.parameters())
    bench.pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        **_collate_lora_metadata({"transformer": transformer}),
    )
    return folder / "pytorch_lora_weights.safetensors", bench.theirs(transformer)


def by_module(path: Path, bench: Bench) -> dict[str, Tensors]:
    """A file of LyCORIS's (lycoris_layers_0_attention_to_q.alpha) -> module -> role -> tensor."""
    names = {name.replace(".", "_"): name for name, _ in bench.base.named_modules()}
    found: dict[str, Tensors] = {}
    for key, tensor in load_file(path).items():
        flat, _, role = key.partition(".")
        found.setdefault(names[flat.removeprefix("lycoris_")], {})[role] = tensor
    return found


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def flat(prefix: str, modules: dict[str, Tensors]) -> Tensors:
    """kohya's way of spelling: lora_unet_layers_0_attention_to_q.alpha."""
    names = {name: prefix + name.replace(".", "_") for name in modules}
    return {f"{names[name]}.{role}": tensor for name, roles in modules.items() for role, tensor in roles.items()}


def dotted(prefix: str, modules: dict[str, Tensors], roles: dict[str, str] | None = None) -> Tensors:
    """transformer.layers.0.attention.to_q.alpha; `roles` are spelled otherwise."""
    spelled = roles or {}
    return {
        f"{prefix}{name}.{spelled.get(role, role)}": tensor
        for name, own in modules.items()
        for role, tensor in own.items()
    }


AB = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def folded(modules: dict[str, Tensors], down: bool = False) -> dict[str, Tensors]:
    """Without alphas: alpha / rank is in the up factors, or its root in both."""
    found = {}
    for name, own in modules.items():
        scale = own["alpha"] / own["lora_down.weight"].shape[0]
        found[name] = {role: tensor for role, tensor in own.items() if role != "alpha"}
        for role in ("lora_down.weight", "lora_up.weight") if down else ("lora_up.weight",):
            found[name][role] = own[role] * (scale.sqrt() if down else scale)
    return found


def musubi_name(flat_name: str) -> str:
    """convert_lora.py, convert_to_diffusers: every underscore is a dot, but in some words of an attention."""
    name = flat_name.replace("_", ".")
    if ".attention.to." in name or ".feed.forward." in name:
        for word in ("to.q", "to.k", "to.v", "to.out", "feed.forward"):
            name = name.replace(word, word.replace(".", "_"))
    return name


def musubi_fused(modules: dict[str, Tensors]) -> dict[str, Tensors]:
    """convert_z_image_lora_to_comfy.py: query, key and value in one product of three times the rank and alpha."""
    found = {
        name.replace("to_out.0", "out"): own for name, own in modules.items() if name.rpartition(".")[2] not in QKV
    }
    for name in [name for name in modules if name.endswith(".to_q")]:
        parts = [modules[name.removesuffix("to_q") + part] for part in QKV]
        diagonal, stacked = ("lora_up.weight",), ("lora_down.weight",)
        if "hada_w1_a" in parts[0]:
            diagonal, stacked = ("hada_w1_a", "hada_w2_a"), ("hada_w1_b", "hada_w2_b")
        fused = {role: torch.block_diag(*(part[role] for part in parts)) for role in diagonal}
        fused |= {role: torch.cat([part[role] for part in parts]) for role in stacked}
        found[name.removesuffix("to_q") + "qkv"] = fused | {"alpha": parts[0]["alpha"] * 3}
    return found


QKV = ("to_q", "to_k", "to_v")
