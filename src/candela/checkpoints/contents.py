"""What a weight file holds: components, in which precision, and what is left over. No tensor is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from candela.checkpoints.architectures import ARCHITECTURES, Architecture
from candela.checkpoints.configuration import configuration, given_configuration
from candela.checkpoints.headers import Header, StoredTensor, read_header
from candela.errors import DamagedFile

# Tensors that belong to a quantised weight of the same base name, in ComfyUI's schemes.
COMPANIONS = ("weight_scale", "weight_scale_2", "scale_weight", "input_scale", "scale_input", "comfy_quant")
# Beside any component, without use here: a SentencePiece model (read as the tokenizer), a marker, an output head.
BESIDE = re.compile(r"(^|\.)(spiece_model|scaled_fp8|logit_scale|lm_head\.weight)$")
# What other quantisers leave in a file, and its name.
FOREIGN = {
    "wscales": "SVDQuant (nunchaku)", "smooth_factor": "SVDQuant (nunchaku)", "quant_map": "bitsandbytes 4-bit",
    "absmax": "bitsandbytes 4-bit", "SCB": "bitsandbytes int8", "qzeros": "GPTQ or AWQ", "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors", "weight_scale_inv": "fp8 in blocks (weight_scale_inv)",
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
        """
        Raises:
            MismatchedModel: as `configuration`.
        """
        return configuration(self)

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
    all_found = (
        Found(architecture, prefix, header, tuple(p for p in prefixes if p != prefix and p.startswith(prefix)))
        for (_, prefix), architecture in places.items()
    )
    found = tuple(each for each in all_found if _is_really(each))
    prefixes = {each.prefix for each in found}
    rest = tuple(name for name in names if not name.startswith(tuple(prefixes)) and not BESIDE.search(name))
    return Contents(header, found, rest)


# Language models of which llama.cpp's metadata tell the name; people who convert for other programs write other words.
LANGUAGE_MODELS = re.compile(r"(qwen|gemma|llama|phi|mistral|falcon|deepseek|internlm|chatglm|glm|olmo|granite|smollm)")


def _is_really(found: Found) -> bool:
    """Language models of other makers have the same names of tensors."""
    architecture, header = found.architecture, found.header
    if architecture.component != "text_encoder":
        return True
    name = str(header.metadata.get("general.architecture"))
    if header.format == "gguf" and LANGUAGE_MODELS.match(name):
        return name == architecture.name
    shape = found.shapes.get("embed_tokens.weight", ())
    return bool(given_configuration(found)) or (len(shape) > 0 and shape[0] >= architecture.least_words)
