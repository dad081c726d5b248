"""Writes a diffusers folder in every layout that people have: other programs' names, files, quantisations.

Names are mapped the other way round than Candela does it, from diffusers to the authors', so that a mistake in one
of the two shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
COMPONENTS = ("transformer", "text_encoder", "vae")


def tensors_of(folder: Path, component: str) -> Tensors:
    tensors: Tensors = {}
    for file in sorted((folder / component).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def configs_of(folder: Path, *components: str) -> dict[str, str]:
    """The metadata with which a file describes what no tensor tells."""
    configs = {name: json.loads((folder / name / "config.json").read_text()) for name in components}
    configs["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    preferences = folder / "candela.json"
    if preferences.is_file():
        configs |= json.loads(preferences.read_text())
    return {"config": json.dumps(configs)}


# --- the authors' names -----------------------------------------------------------------------


def fuse(tensors: Tensors, attention: str) -> Tensors:
    """to_q, to_k, to_v of every block -> one qkv."""
    out = dict(tensors)
    for name in tensors:
        if name.endswith(f"{attention}.to_q.weight"):
            base = name.removesuffix("to_q.weight")
            out[f"{base}qkv.weight"] = torch.cat([out.pop(f"{base}to_{part}.weight") for part in "qkv"])
    return out


def renamed(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def z_image(tensors: Tensors) -> Tensors:
    out = renamed(
        fuse(tensors, "attention"),
        (r"^all_(final_layer|x_embedder)\.2-1\.", r"\1."),
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.norm_([qk])\.", r".\1_norm."),
    )
    out["norm_final.weight"] = torch.ones(out["x_embedder.weight"].shape[0])  # there, and without use
    return out


def lumina_image_2(tensors: Tensors) -> Tensors:
    out = renamed(
        fuse(tensors, "attn"),
        (r"^time_caption_embed\.caption_embedder\.", "cap_embedder."),
        (r"^time_caption_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_caption_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^norm_out\.linear_1\.", "final_layer.adaLN_modulation.1."),
        (r"^norm_out\.linear_2\.", "final_layer.linear."),
        (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
        (r"\.norm1\.norm\.", ".attention_norm1."),
        (r"(context_refiner\.\d+)\.norm1\.", r"\1.attention_norm1."),
        (r"(\d+)\.norm2\.", r"\1.attention_norm2."),
        (r"\.attn\.to_out\.0\.", ".attention.out."),
        (r"\.attn\.norm_([qk])\.", r".attention.\1_norm."),
        (r"\.attn\.", ".attention."),
        (r"\.linear_([123])\.", r".w\1."),
    )
    out["norm_final.weight"] = torch.ones(out["x_embedder.weight"].shape[0])
    return out


def lumina_next(tensors: Tensors) -> Tensors:
    """The authors have one set of queries for picture and text, so diffusers' two must be equal: see `tie_queries`."""
    out = renamed(
        {name: t for name, t in tensors.items() if ".attn2.to_q." not in name and ".attn2.norm_q." not in name},
        (r"^patch_embedder\.proj\.", "x_embedder."),
        (r"^time_caption_embed\.caption_embedder\.", "cap_embedder."),
        (r"^time_caption_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_caption_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^norm_out\.linear_1\.", "final_layer.adaLN_modulation.1."),
        (r"^norm_out\.linear_2\.", "final_layer.linear."),
        (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
        (r"\.norm1\.norm\.", ".attention_norm1."),
        (r"\.norm2\.", ".attention_norm2."),
        (r"\.norm1_context\.", ".attention_y_norm."),
        (r"\.gate$", ".attention.gate"),
        (r"\.attn1\.to_([qkv])\.", r".attention.w\1."),
        (r"\.attn2\.to_([kv])\.", r".attention.w\1_y."),
        (r"\.attn2\.to_out\.0\.", ".attention.wo."),
        (r"\.attn1\.norm_([qk])\.", r".attention.\1_norm."),
        (r"\.attn2\.norm_k\.", ".attention.ky_norm."),
        (r"\.linear_([123])\.", r".w\1."),
    )
    return out


def tie_queries(folder: Path) -> None:
    """Makes a Lumina-Next folder one that its authors' code could have written."""
    from safetensors import safe_open

    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    for name in tensors:
        if ".attn2.to_q." in name or ".attn2.norm_q." in name:
            tensors[name] = tensors[name.replace("attn2", "attn1")].clone()
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata)


def vae(tensors: Tensors) -> Tensors:
    out = renamed(
        tensors,
        *((rf"^decoder\.up_blocks\.{k}\.", f"decoder.up.{3 - k}.") for k in range(4)),
        (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1."),
        (r"(up|down)\.(\d+)\.resnets\.", r"\1.\2.block."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )
    return {n: t[..., None, None] if ".mid.attn_1." in n and t.ndim == 2 else t for n, t in out.items()}


def hugging_face(tensors: Tensors) -> Tensors:
    """A text encoder below `model.`, with the output head that language models have."""
    out = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return out | {"lm_head.weight": tensors["embed_tokens.weight"].clone()}


def llama_cpp(tensors: Tensors, gemma: int) -> Tensors:
    """`gemma` 0: Qwen3. 1 or 2: Gemma, whose norms are stored with 1 added."""
    norms = (
        [(r"\.post_attention_layernorm\.", ".post_attention_norm."), (r"\.pre_feedforward_layernorm\.", ".ffn_norm."),
         (r"\.post_feedforward_layernorm\.", ".post_ffw_norm.")]
        if gemma == 2
        else [(r"\.post_attention_layernorm\.", ".ffn_norm.")]
    )  # fmt: skip
    if gemma:
        tensors = {n: t.float() + 1 if n.endswith("norm.weight") else t for n, t in tensors.items()}
    return renamed(
        tensors,
        (r"^embed_tokens\.", "token_embd."),
        (r"^norm\.", "output_norm."),
        (r"^layers\.", "blk."),
        (r"\.self_attn\.([qkv])_proj\.", r".attn_\1."),
        (r"\.self_attn\.o_proj\.", ".attn_output."),
        (r"\.self_attn\.([qk])_norm\.", r".attn_\1_norm."),
        (r"\.input_layernorm\.", ".attn_norm."),
        *norms,
        (r"\.mlp\.(gate|up|down)_proj\.", r".ffn_\1."),
    )


TRANSFORMER_NAMES: dict[str, Callable[[Tensors], Tensors]] = {
    "z-image": z_image,
    "lumina-image-2": lumina_image_2,
    "lumina-next": lumina_next,
}
# --- quantisations ----------------------------------------------------------------------------


def quantizable(name: str, tensor: torch.Tensor) -> bool:
    """The matrices that people quantise: those of the blocks."""
    return tensor.ndim == 2 and name.endswith(".weight") and re.search(r"(layers|refiner|blk)\.\d+\.", name) is not None


def plain_fp8(tensors: Tensors) -> Tensors:
    return {n: t.to(torch.float8_e4m3fn) if quantizable(n, t) else t for n, t in tensors.items()}


def scaled_fp8(tensors: Tensors, marked: bool = False, per_row: bool = False) -> Tensors:
    """With `.scale_weight` and `scaled_fp8`; `marked` with `.weight_scale` and `.comfy_quant`."""
    out: Tensors = {} if marked else {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if not quantizable(name, tensor):
            out[name] = tensor
            continue
        base = name.removesuffix("weight")
        peak = tensor.float().abs().amax(dim=1, keepdim=True) if per_row else tensor.float().abs().max()
        scale = peak / 448
        out[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        out[f"{base}{'weight_scale' if marked else 'scale_weight'}"] = scale.reshape(-1, 1) if per_row else scale
        if marked:
            out[f"{base}comfy_quant"] = json_tensor({"format": "float8_e4m3fn"})
        else:
            out[f"{base}scale_input"] = torch.ones(())
    return out


def json_tensor(value: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def regular_hadamard(size: int) -> torch.Tensor:
    block = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = block
    while len(matrix) < size:
        matrix = torch.kron(matrix, block)
    return matrix / size**0.5


def int8_convrot(tensors: Tensors, group: int = 256) -> Tensors:
    """Rows scaled to -127..127 after columns were rotated in groups."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if not quantizable(name, tensor) or tensor.shape[1] % group:
            out[name] = tensor
            continue
        base = name.removesuffix("weight")
        turned = (tensor.float().unflatten(1, (-1, group)) @ regular_hadamard(group).T).flatten(1)
        scale = (turned.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-30)
        out[name] = (turned / scale).round().clamp(-128, 127).to(torch.int8)
        out[f"{base}weight_scale"] = scale
        out[f"{base}comfy_quant"] = json_tensor(
            {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
        )
    return out


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nvfp4(tensors: Tensors) -> Tensors:
    """4-bit floats, an fp8 scale per 16 of them in tensor-core order, a float32 scale per matrix."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if not quantizable(name, tensor):
            out[name] = tensor
            continue
        base = name.removesuffix("weight")
        rows, columns = tensor.shape
        padded = torch.zeros(-(-rows // 16) * 16, -(-columns // 16) * 16)
        padded[:rows, :columns] = tensor.float()
        whole = padded.abs().max() / (448 * 6)
        blocks = padded.unflatten(1, (-1, 16))
        scale = (blocks.abs().amax(dim=2) / 6 / whole).to(torch.float8_e4m3fn)
        units = blocks / (scale.float() * whole).clamp(min=1e-12).unsqueeze(-1)
        codes = (units.abs().unsqueeze(-1) - FP4).abs().argmin(dim=-1).to(torch.uint8)
        codes |= (units < 0).to(torch.uint8) << 3
        codes = codes.flatten(1)
        out[name] = (codes[:, ::2] << 4) | codes[:, 1::2]
        high, wide = -(-scale.shape[0] // 128) * 128, -(-scale.shape[1] // 4) * 4
        grid = torch.zeros(high, wide)
        grid[: scale.shape[0], : scale.shape[1]] = scale.float()
        tiles = grid.reshape(high // 128, 4, 32, wide // 4, 4).permute(0, 3, 2, 1, 4)
        out[f"{base}weight_scale"] = tiles.reshape(high, wide).to(torch.float8_e4m3fn)
        out[f"{base}weight_scale_2"] = whole
        out[f"{base}comfy_quant"] = json_tensor({"format": "nvfp4"})
    return out


def q5_k(matrix: np.ndarray) -> np.ndarray:
    """ggml's Q5_K, plainly rounded: 8 groups of 32 with 6-bit scales and minima, in a block of 256. -> bytes."""
    rows = matrix.shape[0]
    groups = matrix.astype(np.float32).reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2), 0)
    scale = (groups.max(axis=2) - low) / 31
    d, m = scale.max(axis=1, keepdims=True) / 63, -low.min(axis=1, keepdims=True) / 63
    d, m = d.astype(np.float16), m.astype(np.float16)
    sc = np.round(scale / np.maximum(d.astype(np.float32), 1e-12)).clip(0, 63).astype(np.uint8)
    mn = np.round(-low / np.maximum(m.astype(np.float32), 1e-12)).clip(0, 63).astype(np.uint8)
    step = d.astype(np.float32) * sc
    floor = m.astype(np.float32) * mn
    q = np.round((groups + floor[..., None]) / np.maximum(step, 1e-12)[..., None]).clip(0, 31).astype(np.uint8)
    scales = np.zeros((len(q), 12), np.uint8)
    scales[:, 0:4] = (sc[:, 0:4] & 63) | ((sc[:, 4:8] >> 4) << 6)
    scales[:, 4:8] = (mn[:, 0:4] & 63) | ((mn[:, 4:8] >> 4) << 6)
    scales[:, 8:12] = (sc[:, 4:8] & 15) | ((mn[:, 4:8] & 15) << 4)
    high = np.zeros((len(q), 32), np.uint8)
    for k in range(8):
        high |= (q[:, k] >> 4) << k
    pairs = q.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] & 15) | ((pairs[:, :, 1] & 15) << 4)
    blocks = np.concatenate([d.view(np.uint8), m.view(np.uint8), scales, high, nibbles.reshape(-1, 128)], axis=1)
    return blocks.reshape(rows, -1)


def quantized(matrix: torch.Tensor, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """In ggml's `kind`, or, where the columns do not fill its blocks, in what llama.cpp falls back to."""
    columns = matrix.shape[-1]
    values = matrix.float().numpy()
    if kind == "Q5_K":
        if columns % 256 == 0:
            return q5_k(values), gguf.GGMLQuantizationType.Q5_K
        kind = "Q5_1"
    wanted = gguf.GGMLQuantizationType[kind]
    if columns % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = gguf.GGMLQuantizationType.F16
    return gguf.quants.quantize(values, wanted), wanted


# --- files ------------------------------------------------------------------------------------


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Tensors,
    kind: str,
    metadata: dict | None = None,
    pad_kind: str | None = None,
) -> Path:
    """Matrices in `kind`, pad tokens in `pad_kind` and 1-D, the rest in F32."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        if name.endswith("pad_token") and pad_kind:
            data, stored = quantized(tensor.reshape(1, -1), pad_kind)
            writer.add_tensor(name, data.reshape(-1), raw_dtype=stored)
        elif quantizable(name, tensor) or name == "token_embd.weight":
            data, stored = quantized(tensor, kind)
            writer.add_tensor(name, data, raw_dtype=stored)
        else:
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def gguf_tokenizer(folder: Path) -> dict:
    """A byte-level tokenizer.json as llama.cpp's metadata."""
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    words = sorted(model["model"]["vocab"], key=model["model"]["vocab"].get)
    special = {token["content"] for token in model["added_tokens"]}
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3 if word in special else 1 for word in words],
    }
    return metadata | ({"tokenizer.ggml.merges": merges} if merges else {})


def export(folder: Path, out: Path, family: str, layout: str) -> str:
    """Writes the model at `folder` to `out` as `layout`; -> what `--model` takes.

    bf16, fp8, scaled-fp8, comfy-fp8, int8, nvfp4: ComfyUI's split files, the transformer in that precision.
    all-in-one: one file. Q8_0, Q5_K, Q4_0: transformer as GGUF, text encoder as safetensors.
    """
    out.mkdir(parents=True, exist_ok=True)
    transformer = TRANSFORMER_NAMES[family](tensors_of(folder, "transformer"))
    text_encoder = hugging_face(tensors_of(folder, "text_encoder"))
    autoencoder = vae(tensors_of(folder, "vae"))
    tokenizer = folder / "tokenizer"
    if layout == "all-in-one":
        kind = {"z-image": "qwen3_4b", "lumina-image-2": "gemma2_2b", "lumina-next": "gemma_2b"}[family]
        tensors = (
            {f"model.diffusion_model.{n}": t for n, t in transformer.items()}
            | {f"text_encoders.{kind}.transformer.{n}": t for n, t in text_encoder.items()}
            | {f"vae.{n}": t for n, t in autoencoder.items()}
        )
        path = write_safetensors(out / "z_image_turbo.safetensors", tensors, configs_of(folder, *COMPONENTS))
        return f"transformer={path},text_encoder={path},vae={path},tokenizer={tokenizer}"
    metadata = configs_of(folder, "transformer")
    quantizers = {
        "bf16": lambda tensors: tensors, "fp8": plain_fp8, "scaled-fp8": scaled_fp8,
        "comfy-fp8": lambda tensors: scaled_fp8(tensors, marked=True), "nvfp4": nvfp4,
        "int8": lambda tensors: int8_convrot(tensors, 16),
    }  # fmt: skip
    if layout in quantizers:
        path = write_safetensors(out / f"z_image_turbo_{layout}.safetensors", quantizers[layout](transformer), metadata)
    else:
        path = write_gguf(out / f"z_image_turbo_{layout}.gguf", "lumina2", transformer, layout, metadata)
    text = write_safetensors(out / "text_encoder.safetensors", text_encoder, configs_of(folder, "text_encoder"))
    decoder = write_safetensors(out / "ae.safetensors", autoencoder, configs_of(folder, "vae"))
    return f"transformer={path},text_encoder={text},vae={decoder},tokenizer={tokenizer}"


# --- full size, without the bytes ---------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]
WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}


def published(family: str) -> tuple[Shapes, str, Shapes]:
    """The transformer's and text encoder's shapes as published -> (transformer, kind of encoder, encoder)."""
    from accelerate import init_empty_weights
    from diffusers import Lumina2Transformer2DModel, LuminaNextDiT2DModel, ZImageTransformer2DModel

    with init_empty_weights():
        if family == "z-image":
            transformer, kind = ZImageTransformer2DModel(), "qwen3"
        elif family == "lumina-image-2":
            transformer, kind = Lumina2Transformer2DModel(cap_feat_dim=2304), "gemma2"
        else:
            transformer, kind = LuminaNextDiT2DModel(num_kv_heads=8, num_layers=24), "gemma"
    return {n: tuple(t.shape) for n, t in transformer.state_dict().items()}, kind, encoder(kind)


def encoder(kind: str, **changes) -> Shapes:
    """Shapes of a text encoder as published: Qwen3-4B, Gemma-2-2B, Gemma-2B; or with `changes` to its config."""
    from accelerate import init_empty_weights
    from transformers import Gemma2Config, Gemma2Model, GemmaConfig, GemmaModel, Qwen3Config, Qwen3Model

    with init_empty_weights():
        if kind == "qwen3":
            sizes = {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32,
                     "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
            model = Qwen3Model(Qwen3Config(**(sizes | changes)))
        elif kind == "gemma2":
            model = Gemma2Model(Gemma2Config(**changes))
        else:
            sizes = {"hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16384,
                     "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256}  # fmt: skip
            model = GemmaModel(GemmaConfig(**(sizes | changes)))
    return {n: tuple(t.shape) for n, t in model.state_dict().items()}


def named(shapes: Shapes, rename: Callable[[Tensors], Tensors]) -> Shapes:
    """Shapes under other names, fused where they are."""
    return {n: tuple(t.shape) for n, t in rename({n: torch.empty(s, device="meta") for n, s in shapes.items()}).items()}


def hollow(path: Path, shapes: Shapes, dtype: str = "BF16", metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of full size whose data is a hole in the disk."""
    at = 0
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return path


def hollow_gguf(path: Path, architecture: str, shapes: Shapes, kind: str, metadata: dict | None = None) -> Path:
    """A GGUF file of full size whose data is a hole in the disk; matrices in `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        add = {list: writer.add_array, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    total = 0
    for name, shape in shapes.items():
        stored = gguf.GGMLQuantizationType[kind if len(shape) == 2 and shape[-1] % 256 == 0 else "F32"]
        block, width = gguf.GGML_QUANT_SIZES[stored]
        size = int(np.prod(shape)) // block * width
        packed = (*shape[:-1], shape[-1] // block * width) if block > 1 else shape
        writer.add_tensor_info(name, packed, np.dtype(np.uint8 if block > 1 else np.float32), size, raw_dtype=stored)
        total += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + total)
    return path
