"""Tensors out of weight files, as they are stored: plain, or packed with their scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import Any, cast

import torch

from candela.checkpoints.contents import Found
from candela.checkpoints.headers import Header, StoredTensor, json_text
from candela.checkpoints.packed import BlockScaled, GGUFBlocks, Packed, Scaled, readable, untiled
from candela.errors import DamagedFile, MismatchedModel

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
# ComfyUI's names of the formats that a weight of each scheme may be in (comfy/quant_ops.py).
KNOWN_FORMATS = {
    "fp8": ("fp8", "float8_e4m3fn", "float8_e5m2", "mxfp8"), "int8": ("int8", "int8_tensorwise"), "nvfp4": ("nvfp4",),
}  # fmt: skip
# Length of a block, and the kind of float that its scale is.
BLOCKS = {"nvfp4": (16, torch.float8_e4m3fn), "mxfp8": (32, torch.float8_e8m0fnu)}
MAX_MARKER = 65_536  # bytes of what describes how one layer is quantised


def read_tensor(file: BufferedReader, tensor: StoredTensor, *, hollow: bool = False) -> torch.Tensor:
    """The tensor's values on the CPU, read rather than mapped: a file that shrinks meanwhile is an error, not a crash.
    If `hollow` nothing is read, and the tensor is on the meta device.

    Blocks of ggml's types come as bytes, uint8 [..., bytes per row].

    Raises:
        DamagedFile: the file ends before the tensor does.
    """
    data = torch.empty(tensor.bytes, dtype=torch.uint8, device="meta" if hollow else "cpu")
    file.seek(tensor.offset)
    if not hollow and file.readinto(cast(Any, data.numpy())) != tensor.bytes:
        raise DamagedFile(f"{file.name} ends inside the tensor {tensor.name!r}. Download it again")
    if tensor.dtype in DTYPES:
        return data.view(DTYPES[tensor.dtype]).reshape(tensor.shape)
    rows = tensor.shape[:-1]
    return data.reshape(*rows, -1) if rows else data.reshape(1, -1)


def stored_weights(
    found: Found, wanted: Callable[[str], bool], *, hollow: bool = False
) -> Iterator[tuple[str, torch.Tensor | Packed]]:
    """The weights of a component that are `wanted`, by stored name, in the order of the file; quantised ones packed.
    If `hollow`, only what describes them is read, and they are on the meta device.

    Raises:
        MismatchedModel: a quantisation that is not read here, named.
        DamagedFile: the file ends early, or a scale is missing.
    """
    if found.foreign:
        raise MismatchedModel(
            f"{found.header.path} is quantised with {found.foreign}, which is not read here. Take a GGUF, fp8, int8 or "
            "bf16 file of the same model"
        )
    layers = _layers(found.header)
    with open(found.header.path, "rb") as file:
        for name, tensor in sorted(found.weights.items(), key=lambda item: item[1].offset):
            if wanted(name):
                yield name, _weight(file, found, name, tensor, layers, hollow)


def _weight(
    file: BufferedReader, found: Found, name: str, tensor: StoredTensor, layers: dict[str, dict], hollow: bool
) -> torch.Tensor | Packed:
    values, scheme = read_tensor(file, tensor, hollow=hollow), found.scheme(name)
    base = name.removesuffix("weight")

    def companion(*suffixes: str, hollow: bool = hollow) -> torch.Tensor | None:
        entry = next((found.tensors[base + s] for s in suffixes if base + s in found.tensors), None)
        if entry is not None and entry.bytes > 8 * tensor.bytes + MAX_MARKER:
            raise DamagedFile(
                f"{found.header.path}: {entry.name[:80]!r} is {entry.bytes} bytes long, beside a weight of "
                f"{tensor.bytes}. Download it again"
            )
        return None if entry is None else read_tensor(file, entry, hollow=hollow)

    if scheme == "plain":
        return values
    if found.header.format == "gguf":
        return values if tensor.dtype in DTYPES else _ggml(found, name, values)
    described = companion("comfy_quant", hollow=False)
    own = base.rstrip(".")
    layer = layers.get(found.prefix + own) or layers.get(own) or {}
    if described is not None:
        layer = _json(found.header, bytes(described.numpy()))
    scale = companion("weight_scale", "scale_weight")
    if scheme == "fp8" and values.ndim != 2 and (scale is None or scale.numel() == 1):
        return values.float() if scale is None else values.float() * scale.float()
    if scheme == "unknown" or values.ndim != 2:
        raise MismatchedModel(
            f"{found.header.path}: the weight {name!r} is {tensor.dtype} {list(tensor.shape)} without a scale that "
            "tells what its numbers mean. Take a GGUF, fp8 or bf16 file of the same model"
        )
    rows, columns = values.shape
    kind = layer.get("format", scheme)
    if kind not in KNOWN_FORMATS.get(scheme, ()) or (layers and scheme == "int8" and not layer):
        raise MismatchedModel(
            f"{found.header.path}: the weight {name!r} is quantised as {str(kind)[:40]!r}, and how that is to be read "
            "is not known here. Take a GGUF, fp8 or bf16 file of the same model"
        )
    if kind in BLOCKS:
        return _in_blocks(found, name, values, BLOCKS[kind], scale, companion("weight_scale_2"))
    if scale is None:
        scale = torch.ones(1, device=values.device)
    if scale.numel() not in (1, rows):
        raise MismatchedModel(
            f"{found.header.path}: the weight {name!r} has {scale.numel()} scales for {rows} rows: a scheme "
            f"({kind}) that is not read here. Take a GGUF, fp8 or bf16 file of the same model"
        )
    options = {**layer.get("params", {}), **layer} if isinstance(layer.get("params", {}), dict) else layer
    rotation = options.get("convrot_groupsize", 256) if options.get("convrot") else 0
    if (rotation not in (4, 16, 64, 256, 1024, 4096) and options.get("convrot")) or (rotation and columns % rotation):
        raise DamagedFile(
            f"{found.header.path}: the weight {name!r} has {columns} columns that were turned in groups of "
            f"{str(rotation)[:40]}, which is no power of 4 that divides them. Download it again"
        )
    return Scaled((rows, columns), values, scale.float().reshape(-1, 1), rotation)


def _ggml(found: Found, name: str, values: torch.Tensor) -> GGUFBlocks:
    """`values` uint8 [..., bytes per row]."""
    tensor = found.tensors[name]
    if not readable(tensor.dtype):
        raise MismatchedModel(
            f"{found.header.path}: the weight {name!r} is stored as {tensor.dtype}, which the gguf package does not "
            "read. Take Q8_0 or another usual type of the same model"
        )
    return GGUFBlocks((values.shape[:-1].numel(), tensor.shape[-1]), values.flatten(0, -2), tensor.dtype)


def _in_blocks(
    found: Found, name: str, values: torch.Tensor, block: tuple[int, torch.dtype],
    scale: torch.Tensor | None, second: torch.Tensor | None,
) -> BlockScaled:  # fmt: skip
    """`values` [rows, columns], or half as many columns of uint8; `block` how long its blocks are, and of which kind
    their scales, stored as bytes by some programs; `second` is the scale of the whole matrix."""
    rows, columns = values.shape
    columns = columns * 2 if values.dtype == torch.uint8 else columns
    length, kind = block
    second = torch.ones(1) if second is None else second
    if scale is None or columns % length or second.numel() != 1:
        raise DamagedFile(
            f"{found.header.path}: the weight {name!r} has {columns} columns in blocks of {length}, "
            f"{'no' if scale is None else scale.numel()} scales for them, and {second.numel()} for all of it. "
            "Download it again"
        )
    blocks = untiled(scale.view(kind) if scale.element_size() == 1 else scale, rows, columns // length)
    return BlockScaled((rows, columns), values, blocks, second.float().reshape(1))


def _layers(header: Header) -> dict[str, dict]:
    """What ComfyUI's metadata says of each quantised layer, by full name."""
    text = header.metadata.get("_quantization_metadata")
    layers = _json(header, text.encode()).get("layers") if isinstance(text, str) else {}
    if not isinstance(layers, dict):
        raise DamagedFile(f"{header.path}: how its layers are quantised is no JSON object. Download it again")
    return {name: layer for name, layer in layers.items() if isinstance(layer, dict)}


def _json(header: Header, text: bytes) -> dict:
    try:
        value = json_text.parse(text)
    except ValueError as error:
        raise DamagedFile(f"{header.path}: how it is quantised is no JSON ({error}). Download it again") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{header.path}: how it is quantised is no JSON object. Download it again")
    return value
