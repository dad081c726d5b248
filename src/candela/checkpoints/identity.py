"""What files are, from their headers alone: no tensor is read, nothing heavy is imported."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candela.checkpoints.architectures import ARCHITECTURES
from candela.checkpoints.architectures.text_encoders import known_as
from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.contents import Contents, Found, read_contents
from candela.checkpoints.folder import read_component, read_folder
from candela.checkpoints.headers import Header, read_header, reading
from candela.checkpoints.lora.file import lora_of
from candela.checkpoints.lora.methods import method_of
from candela.checkpoints.opening import kind_of
from candela.checkpoints.resemblance import Resemblance, nearest
from candela.checkpoints.sanity import number
from candela.checkpoints.variants import variant_of
from candela.errors import CandelaError, DamagedFile, ModelNotFound

SHOWN_METADATA = (
    "general.architecture", "general.name", "general.quantized_by", "general.license", "modelspec.title",
    "modelspec.architecture", "ss_base_model_version", "ss_network_module", "format",
)  # fmt: skip
LAYERS = ("n_layers", "num_layers", "num_hidden_layers")


@dataclass(frozen=True)
class Component:
    """One component of a file or folder.

    Attributes:
        family: of a transformer; the kind of a text encoder (qwen3) or VAE.
        variant: turbo or base, where a name tells; `evidence` is that name.
        names: whose tensor names these are: the class's own (diffusers), the authors', llama.cpp's; and the prefix.
        text_width: width of the text features that a transformer expects or a text encoder gives.
        known_as: the model that a text encoder of this width is.
    """

    component: str
    family: str
    class_name: str
    precision: str
    parameters: int
    bytes: int
    variant: str = ""
    evidence: str = ""
    names: str = ""
    text_width: int | None = None
    known_as: str = ""
    latent_channels: int | None = None
    layers: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class LoraSummary:
    """A LoRA: whose names it has, how it changes the weights (lora, lokr, loha, diff, dora), its ranks, how many
    modules it touches, a few of them, and the family that it was made for, as far as names and widths tell."""

    naming: str
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    modules: int
    some: tuple[str, ...]
    family: str | None
    text_encoder_tensors: int
    unknown_tensors: int


@dataclass(frozen=True)
class Identity:
    """What one path is.

    Attributes:
        kind: model (a folder in diffusers layout), file, component (a folder of one), lora, or unknown.
        format: safetensors, gguf or diffusers.
        rest: names of tensors that belong to no component found.
        resembles: for an unknown file.
        method: for an unknown file, the way to adapt a model that is no LoRA (OFT, VeRA, ...), if it is one.
        lora: for a LoRA, of whatever model.
    """

    path: str
    kind: str
    format: str
    bytes: int
    tensors: int
    components: tuple[Component, ...] = ()
    pipeline: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    rest: tuple[str, ...] = ()
    resembles: Resemblance | None = None
    method: str = ""
    lora: LoraSummary | None = None


def identify(path: str | os.PathLike[str]) -> Identity:
    """Reads the headers of one weight file, a diffusers folder, or a component's folder.

    Raises:
        ModelNotFound: there is nothing at `path`.
        DamagedFile, MismatchedModel: what is there cannot be read.
    """
    try:
        if not os.fspath(path):
            raise ModelNotFound("the path is empty: give a weight file, or a model's folder")
        place = Path(os.path.expanduser(path))
        is_folder, is_there = place.is_dir(), place.exists()
    except PermissionError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}. Check its permissions") from error
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user
        raise ModelNotFound(f"{os.fspath(path)[:200]} cannot be a path: {str(error)[:200]}") from error
    if is_folder:
        with reading(place):
            return _folder(place)
    if not is_there:
        raise ModelNotFound(f"there is nothing at {place}. Check the path")
    return _file(read_contents(place))


def _file(contents: Contents) -> Identity:
    header = contents.header
    names = list(header.tensors)
    metadata = {key: str(header.metadata[key])[:200] for key in SHOWN_METADATA if key in header.metadata}
    components = tuple(component_of(found) for found in contents.found)
    if not components and (lora := _lora(header)):
        return Identity(str(header.path), "lora", header.format, header.bytes, len(names), metadata=metadata, lora=lora)
    return Identity(
        str(header.path), "file" if components else "unknown", header.format, header.bytes, len(names), components,
        metadata=metadata, rest=contents.rest if components else (),
        resembles=None if components else nearest(names),
        method="" if components else (method_of(header.tensors) or ("",))[0],
    )  # fmt: skip


def _lora(header: Header) -> LoraSummary | None:
    try:
        file = lora_of(header)
    except CandelaError:
        return None
    some = tuple(module.name for module in file.modules[:3])
    return LoraSummary(
        file.naming, file.kinds, file.ranks, len(file.modules), some, file.family, len(file.text_encoder),
        len(file.unknown),
    )  # fmt: skip


def component_of(found: Found) -> Component:
    problem, config = "", {}
    try:
        config = found.config
    except CandelaError as error:
        problem = str(error)
    if found.foreign:
        problem = f"quantised with {found.foreign}, which is not read here"
    architecture = found.architecture
    transformer = architecture.component == "transformer"
    variant = variant_of(architecture.name, found.header.path, found.header) if transformer else None
    program = "the authors'" if any(name != stored for name, stored in found.own.items()) else "diffusers'"
    if architecture.component == "text_encoder":
        program = "llama.cpp's" if "token_embd.weight" in found.weights else "transformers'"
    width = _text_width(architecture.component, config)
    return Component(
        component=architecture.component,
        family=architecture.name,
        class_name=architecture.class_name,
        precision=found.precision,
        parameters=found.parameters,
        bytes=found.bytes,
        variant=variant.name if variant and variant.evidence else "",
        evidence=variant.evidence if variant else "",
        names=f"{program}{f', below {found.prefix}' if found.prefix else ''}",
        text_width=width,
        known_as=known_as(architecture.name, width),
        latent_channels=number(config, "latent_channels" if architecture.component == "vae" else "in_channels"),
        layers=number(config, *LAYERS),
        problem=problem,
    )


def _text_width(component: str, config: dict[str, Any]) -> int | None:
    keys = {"text_encoder": ("hidden_size",), "transformer": ("cap_feat_dim", "cross_attention_dim")}
    return number(config, *keys.get(component, ()))


def _folder(path: Path) -> Identity:
    if (path / "model_index.json").is_file():
        checkpoint: Checkpoint = read_folder(path)
        order = {"transformer": 0, "unet": 0, "vae": 2}
        names = sorted(checkpoint.parts, key=lambda name: (order.get(name, 1), name))
        parts = {name: checkpoint.parts[name] for name in names if checkpoint.parts[name].files}
        components = tuple(_part(name, part) for name, part in parts.items())
        tensors = sum(len(read_header(file).tensors) for part in checkpoint.parts.values() for file in part.files)
        return Identity(
            str(path), "model", "diffusers", checkpoint.bytes, tensors, components, pipeline=checkpoint.pipeline
        )
    part = read_component(path, "")
    headers = [read_header(file) for file in part.files]
    tensors = sum(len(header.tensors) for header in headers)
    return Identity(
        str(path), "component", "diffusers", sum(header.bytes for header in headers), tensors, (_part("", part),)
    )


def _part(name: str, part: Part) -> Component:
    stored = [tensor for file in part.files for tensor in read_header(file).tensors.values()]
    by_type: dict[str, int] = {}
    for tensor in stored:
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.bytes
    kind = part.config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    width = _text_width("text_encoder" if kind else "transformer", part.config)
    return Component(
        component=name or kind_of(part) or "component",
        family=next((a.name for a in ARCHITECTURES if a.class_name == part.class_name), kind or part.class_name),
        class_name=part.class_name,
        precision=max(by_type, key=lambda dtype: by_type[dtype], default="empty"),
        parameters=sum(math.prod(tensor.shape) for tensor in stored),
        bytes=sum(tensor.bytes for tensor in stored),
        names="diffusers'" if part.library == "diffusers" else "transformers'",
        text_width=width,
        known_as=known_as(kind, width),
        latent_channels=None if kind else number(part.config, "latent_channels", "in_channels"),
        layers=number(part.config, *LAYERS),
    )
