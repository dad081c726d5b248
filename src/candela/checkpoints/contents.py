"""What a weight file holds: components, in which precision, and what is left over. No tensor is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from candela.checkpoints.architectures import ARCHITECTURES, Architecture
from candela.checkpoints.headers import Header, StoredTensor, json_text, read_header
from candela.errors import DamagedFile, MismatchedModel

# Tensors that belong to a quantised weight of the same base name, in ComfyUI's schemes.
COMPANIONS = ("weight_scale", "weight_scale_2", "scale_weight", "input_scale", "scale_input", "comfy_quant")
# Beside any component, without use here: a SentencePiece model (read as the tokenizer), a marker, an output head.
BESIDE = re.compile(r"(^|\.)(spiece_model|scaled_fp8|logit_scale|lm_head\.weight)$")
# What other quantisers leave in a file, and its name.
FOREIGN = {
    "wscales": "SVDQuant (nunchaku)", "smooth_factor": "SVDQuant (nunchaku)", "quant_map": "bitsandbytes 4-bit",
    "absmax": "bitsandbytes 4-bit", "SCB": "bitsandbytes int8", "qzeros": "GPTQ or AWQ", "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
}  # fmt: skip
FLOATS = {"F64", "F32", "F16", "BF16"}
MAX_COMPONENT = 20_000  # tensors; transformers have up to 3,000, quantised ones four times as many


@dataclass(frozen=True)
class Found:
    """One component inside a weight file: the tensors below `prefix`, without those below `others`, longer prefixes
    of other components."""

    architecture: Architecture
    prefix: str
    header: Header
    others: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """By their names without prefix.

        Raises:
            DamagedFile: more than any component has.
        """
        cut = len(self.prefix)
        found = {
            name[cut:]: tensor
            for name, tensor in self.header.tensors.items()
            if name.startswith(self.prefix) and not (self.others and name.startswith(self.others))
        }
        if len(found) > MAX_COMPONENT:
            raise DamagedFile(
                f"{self.header.path}: {len(found)} of its tensors have names of a {self.title}, and none has more than "
                f"{MAX_COMPONENT}. Download it again"
            )
        return found

    @cached_property
    def weights(self) -> dict[str, StoredTensor]:
        """`tensors` without scales and markers."""
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if self.companion_of(name) is None and not BESIDE.search(name)
        }

    def companion_of(self, name: str) -> str | None:
        """The weight that the tensor `name` scales or describes; None for one that stands for itself."""
        base, _, last = name.rpartition(".")
        if last in COMPANIONS and f"{base}.weight" in self.tensors:
            return f"{base}.weight"
        return None

    def scheme(self, name: str) -> str:
        """How the weight `name` is stored: plain, a ggml type, fp8, int8, nvfp4, or unknown."""
        tensor = self.tensors[name]
        if tensor.dtype in FLOATS:
            return "plain"
        if self.header.format == "gguf":
            return tensor.dtype
        base = name.removesuffix("weight")
        if tensor.dtype.startswith("F8"):
            return "fp8"
        if tensor.dtype == "I8" and f"{base}weight_scale" in self.tensors:
            return "int8"
        if tensor.dtype == "U8" and f"{base}weight_scale_2" in self.tensors:
            return "nvfp4"
        return "unknown"

    @cached_property
    def own(self) -> dict[str, str]:
        """By the class's own names the stored ones; fused projections stay fused."""
        return self.architecture.renamed(self.weights)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the class's own names."""
        shapes = {}
        for name, stored in self.own.items():
            shape = self.tensors[stored].shape
            shapes[name] = (shape[0], 2 * shape[1]) if self.scheme(stored) == "nvfp4" else shape
        return shapes

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the component is built from: the file's own metadata, a config.json beside a file of diffusers' name,
        else what the shapes tell.

        Raises:
            MismatchedModel: the shapes do not tell, or tensors that should are missing.
        """
        component = self.architecture.component
        given = config_metadata(self.header).get(component)
        beside = self.header.path.parent / "config.json"
        if not given and self.header.path.name.startswith(("diffusion_pytorch_model", "model")) and beside.is_file():
            from candela.checkpoints.folder import read_json

            config = read_json(beside)
            named = config.get("architectures")
            if self.architecture.class_name in (config.get("_class_name"), *(named if isinstance(named, list) else ())):
                given = config
        if isinstance(given, dict) and given:
            return {key: value for key, value in given.items() if not key.startswith("_")}
        try:
            derived = self.architecture.config(self.shapes)
        except (KeyError, IndexError, ValueError, ZeroDivisionError, OverflowError) as error:
            shard = re.search(r"-(\d{5})-of-(\d{5})\.", self.header.path.name)
            remedy = f"It is one of {int(shard[2])} parts: give their folder" if shard else "Download it again"
            raise MismatchedModel(
                f"{self.header.path} holds only a part of a {self.title}: {str(error)[:200]} is missing or of "
                f"another shape. {remedy}"
            ) from error
        if not derived:
            raise MismatchedModel(
                f"{self.header.path} holds a {self.title} of a size that is not among the published ones, and a file "
                "of weights does not tell the rest (norms, scales, heads). Give the folder that has its config.json too"
            )
        return derived

    @property
    def title(self) -> str:
        kind = self.architecture.component.replace("_", " ").replace("vae", "VAE")
        return kind if self.architecture.component == "vae" else f"{self.architecture.name} {kind}"

    @property
    def parameters(self) -> int:
        packed = {name for name in self.weights if self.scheme(name) == "nvfp4"}
        return sum(math.prod(t.shape) * (2 if name in packed else 1) for name, t in self.weights.items())

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.tensors.values())

    @property
    def precision(self) -> str:
        """The type that most values have, and how many tensors have which."""
        sizes: Counter[str] = Counter()
        tensors: Counter[str] = Counter()
        for name, tensor in self.weights.items():
            scheme = self.scheme(name)
            label = tensor.dtype if scheme in ("plain", "fp8", "unknown") else scheme
            if scheme == "fp8":
                base = name.removesuffix("weight")
                scaled = any(base + suffix in self.tensors for suffix in ("weight_scale", "scale_weight"))
                label = f"scaled {tensor.dtype}" if scaled else tensor.dtype
            sizes[label] += math.prod(tensor.shape)
            tensors[label] += 1
        main = sizes.most_common(1)[0][0] if sizes else "empty"
        if len(tensors) < 2:
            return main
        return f"{main} ({', '.join(f'{label}: {number}' for label, number in tensors.most_common())} tensors)"

    @property
    def foreign(self) -> str | None:
        """The name of a quantisation that cannot be read here."""
        names = {name.rpartition(".")[2] for name in self.tensors}
        return next((scheme for last, scheme in FOREIGN.items() if last in names), None)


@dataclass(frozen=True)
class Contents:
    """The components of one weight file, and the tensors that belong to none."""

    header: Header
    found: tuple[Found, ...]
    rest: tuple[str, ...]

    def get(self, component: str) -> Found | None:
        return next((found for found in self.found if found.architecture.component == component), None)

    @property
    def sentencepiece(self) -> StoredTensor | None:
        """A tokenizer's model, which ComfyUI keeps as a tensor of bytes beside Gemma's weights."""
        return next((t for name, t in self.header.tensors.items() if re.search(r"(^|\.)spiece_model$", name)), None)


def read_contents(path: Path) -> Contents:
    """
    Raises:
        DamagedFile: as `read_header`.
    """
    header = read_header(path)
    names = list(header.tensors)
    places: dict[tuple[str, str], Architecture] = {}
    for architecture in ARCHITECTURES:
        for prefix in architecture.prefixes(names):
            places.setdefault((architecture.component, prefix), architecture)
    prefixes = {prefix for _, prefix in places}
    found = tuple(
        Found(architecture, prefix, header, tuple(p for p in prefixes if p != prefix and p.startswith(prefix)))
        for (_, prefix), architecture in places.items()
    )
    rest = tuple(name for name in names if not name.startswith(tuple(prefixes)) and not BESIDE.search(name))
    return Contents(header, found, rest)


def config_metadata(header: Header) -> Mapping[str, Any]:
    """The configurations by component that some files carry in their metadata, as JSON under `config`.

    Raises:
        DamagedFile: it is there, and no JSON object.
    """
    text = header.metadata.get("config")
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return {}
    try:
        return json_text.parse(text.encode())
    except ValueError as error:
        raise DamagedFile(f"{header.path}: the metadata 'config' is no JSON ({error}). Download it again") from error
