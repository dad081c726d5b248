"""A LoRA file as its header describes it; no tensor is read.

Names are a prefix (whose program wrote it), a module of the model, and the role of the tensor:

    transformer.layers.0.attention.to_q.lora_A.weight           diffusers, peft
    base_model.model.layers.0.attention.to_q.lora_A.weight      peft itself
    diffusion_model.layers.0.attention.qkv.lora_A.weight        ComfyUI, and most trainers for it
    lora_unet_layers_0_attention_qkv.lora_down.weight           kohya's scripts
    lycoris_layers_0_attention_qkv.lokr_w1                      LyCORIS
    lora_transformer_layers_0_attention_to_q.lora_down.weight   OneTrainer
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candela.checkpoints.headers import Header, StoredTensor, read_header
from candela.checkpoints.lora.guessing import family_of_names
from candela.errors import CheckpointError, InvalidRequest, MismatchedModel, ModelNotFound

DOTTED = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
TEXT = re.compile(r"^(base_model\.model\.)?(lora_te\d*_|(lycoris_)?text_encoders?[._\d]|te\d?\.|cond_stage_model\.)")
ROLE = re.compile(
    r"^(?P<module>.+?)\.(?P<role>lora_[AB]|lora_(?:down|up|mid)|lora(?:_linear_layer)?\.(?:down|up)|alpha|dora_scale|"
    r"lora_magnitude_vector|lokr_w[12](?:_[ab])?|lokr_t2|hada_w[12]_[ab]|hada_t[12]|diff_b|diff|set_weight|"
    r"reshape_weight)(?P<adapter>\.(?!weight$|bias$)\w+)?(?P<end>\.weight|\.bias)?$"
)
ROLES = {
    "lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_linear_layer.down": "down",
    "lora_B": "up", "lora_up": "up", "lora.up": "up", "lora_linear_layer.up": "up",
    "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude",
}  # fmt: skip
LONGEST_NAME = 1000  # real ones stay below 150; patterns must not be set on a stranger's megabytes
# Words that hold an underscore themselves, in the authors' names and diffusers': flat names use it for the dot too.
WORDS = (
    "time_caption_embed", "timestep_embedder", "caption_embedder", "context_refiner", "noise_refiner",
    "siglip_refiner", "siglip_embedder", "adaLN_modulation", "all_final_layer", "all_x_embedder", "patch_embedder",
    "cap_embedder", "feed_forward", "final_layer", "x_embedder", "t_embedder", "norm_out", "linear_1", "linear_2",
    "linear_3", "to_out", "to_q", "to_k", "to_v", "wk_y", "wv_y",
)  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """A LoRA file, and how strongly it is applied: 1 as it was trained, 0 not at all, below 0 the other way.

    Raises:
        InvalidRequest: at construction, for a strength that is no finite number.
    """

    path: str | os.PathLike[str]
    strength: float = 1.0

    def __post_init__(self) -> None:
        try:
            strength = float(self.strength)
        except (TypeError, ValueError):
            raise InvalidRequest(f"the strength of a LoRA must be a number, not {self.strength!r}") from None
        if not math.isfinite(strength) or abs(strength) > 100:
            raise InvalidRequest(f"the strength {strength:g} of {self.path} is out of range: -100 to 100; 1 is usual")
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "path", os.fspath(self.path))


@dataclass(frozen=True)
class LoraModule:
    """What a file holds for one module of the model.

    Attributes:
        name: of the module, without prefix; dots restored in flat names as far as the words are known.
        stored: the same as the file spells it.
        tensors: by role: down, up, alpha, magnitude, lokr_*, hada_*, diff, diff_b, ...
    """

    name: str
    stored: str
    tensors: dict[str, StoredTensor]

    @property
    def kind(self) -> str:
        """lora, lokr, loha, diff; empty for what is none of them."""
        for beginning, kind in (("down", "lora"), ("up", "lora"), ("lokr", "lokr"), ("hada", "loha"), ("diff", "diff")):
            if any(role.startswith(beginning) for role in self.tensors):
                return kind
        return ""

    @property
    def rank(self) -> int | None:
        """The inner size of its factors; None where there are none."""
        for role in ("down", "lokr_w1_b", "lokr_w2_b", "hada_w1_b"):
            if role in self.tensors:
                return self.tensors[role].shape[0] if self.tensors[role].shape else None
        return None


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file says of itself.

    Attributes:
        naming: the prefix of its names: "transformer.", "lora_unet_", ...; empty for bare names.
        family: what it was made for, as far as names, widths and metadata tell.
        modules: of the diffusion model.
        text_encoder: names of tensors that are for a text encoder.
        unknown: names of tensors that are no part of any known kind of LoRA.
        settings: peft's own, where they came along (lora_alpha, use_rslora, alpha_pattern).
    """

    path: Path
    bytes: int
    naming: str
    family: str | None
    modules: tuple[LoraModule, ...]
    text_encoder: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """lora, lokr, loha, diff, and dora where magnitudes are there."""
        found = {module.kind for module in self.modules} - {""}
        dora = any("magnitude" in module.tensors for module in self.modules)
        return (*sorted(found), *(["dora"] if dora else []))

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({module.rank for module in self.modules if module.rank is not None}))

    def scale(self, module: LoraModule, alpha: float | None) -> float:
        """alpha / rank (https://arxiv.org/abs/2106.09685, 4.1), or alpha / sqrt(rank) where peft's settings say
        rank-stabilised (https://arxiv.org/abs/2312.03732). Without an alpha anywhere it is 1, as in ComfyUI, kohya's
        scripts and diffusers. `alpha` is the file's tensor for this module, if it has one."""
        rank = module.rank
        if rank is None:  # LoKr of two whole factors: LyCORIS takes its alpha for its rank
            return 1.0
        if alpha is None:
            patterns = self.settings.get("alpha_pattern", {}).items()
            usual = self.settings.get("lora_alpha", rank)
            alpha = next((value for pattern, value in patterns if _matches(pattern, module.name)), usual)
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Reads the header of a LoRA file, of whatever model.

    Raises:
        ModelNotFound: no such file.
        DamagedFile: not safetensors, or truncated.
        MismatchedModel: it holds no LoRA.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ModelNotFound(f"there is no LoRA file {path}: check the name and the folder")
    return lora_of(read_header(path))


def lora_of(header: Header) -> LoraFile:
    """
    Raises:
        MismatchedModel: no LoRA.
    """
    groups: dict[str, dict[str, StoredTensor]] = {}
    text: list[str] = []
    unknown: list[str] = []
    for name, tensor in header.tensors.items():
        if len(name) > LONGEST_NAME:
            unknown.append(name)
        elif TEXT.search(name):
            text.append(name)
        elif (match := ROLE.match(name)) and (role := _role(match)) not in groups.setdefault(match["module"], {}):
            groups[match["module"]][role] = tensor
        else:
            unknown.append(name)
    groups = {name: tensors for name, tensors in groups.items() if tensors}
    if not groups and not any(ROLE.match(name) for name in text):
        raise MismatchedModel(
            f"{header.path} holds no LoRA: none of its {len(header.tensors)} tensors is named like a part of one "
            f"(they are {some(list(header.tensors)) or 'none'}). A whole model is chosen as the model, not as a LoRA"
        )
    if header.format != "safetensors":
        raise MismatchedModel(f"{header.path} is a LoRA in {header.format}. Take its safetensors version")
    split = {name: _split(name) for name in groups}
    modules = tuple(LoraModule(split[name][1], name, tensors) for name, tensors in groups.items())
    return LoraFile(
        header.path,
        header.bytes,
        next((prefix for prefix, _ in split.values()), ""),
        family_of_names({module.name: _inputs(module) for module in modules}, header.metadata),
        modules,
        tuple(text),
        tuple(unknown),
        _settings(header),
        header.metadata,
    )


def some(names: list[str] | tuple[str, ...], limit: int = 3) -> str:
    """The first few, for messages."""
    return ", ".join(name[:80] for name in names[:limit]) + (", ..." if len(names) > limit else "")


def _role(match: re.Match[str]) -> str:
    role = ROLES.get(match["role"], match["role"])
    return f"{role}_bias" if match["end"] == ".bias" else role


def _split(name: str) -> tuple[str, str]:
    """A module as the file spells it -> (prefix, name with dots)."""
    rest = name
    while dotted := next((prefix for prefix in DOTTED if rest.startswith(prefix)), None):
        rest = rest.removeprefix(dotted)
    if flat := next((prefix for prefix in FLAT if rest.startswith(prefix)), None):
        rest = rest.removeprefix(flat)
        rest = ".".join(re.findall(rf"(?:{'|'.join(WORDS)})(?=_|$)|[^_]+", rest))
    return name[: name.index(flat) + len(flat)] if flat else name.removesuffix(rest), rest


def _inputs(module: LoraModule) -> int | None:
    """How many values the module takes, by the shape of a plain LoRA."""
    down = module.tensors.get("down")
    return down.shape[1] if down and len(down.shape) > 1 else None


def _matches(pattern: str, name: str) -> bool:
    """As peft's get_pattern_key: a whole name, or, unless it begins with ^, its end."""
    literal = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^").removesuffix("$"))
    return name == literal or (not pattern.startswith("^") and name.endswith(f".{literal}"))


def _settings(header: Header) -> dict[str, Any]:
    """peft's settings: diffusers writes them into the file, peft into a file beside it.

    Raises:
        CheckpointError: they are not what peft writes, or their patterns are more than names.
    """
    beside = header.path.with_name("adapter_config.json")
    try:
        if text := header.metadata.get("lora_adapter_metadata"):
            values = {str(name).removeprefix("transformer."): value for name, value in json.loads(text).items()}
        elif header.path.name.startswith("adapter_model") and beside.is_file():
            values = json.loads(beside.read_text(encoding="utf-8"))
        else:
            return {}
        patterns = {str(name): float(value) for name, value in dict(values.get("alpha_pattern") or {}).items()}
        kept: dict[str, Any] = {"use_rslora": bool(values.get("use_rslora")), "alpha_pattern": patterns}
        if (alpha := values.get("lora_alpha")) is not None:
            kept["lora_alpha"] = float(alpha)
        if not all(map(math.isfinite, [kept.get("lora_alpha", 1.0), *patterns.values()])):
            raise ValueError("an alpha is no finite number")
        # A stranger's regular expression can run for ever; those that people write are names.
        if odd := next((name for name in patterns if re.search(r"[()*+?{}|\[\]]", re.sub(r"\\.", "", name))), None):
            raise ValueError(f"the pattern {odd[:80]!r} in alpha_pattern is no plain name")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{header.path}: the LoRA's settings, as peft writes them, cannot be used ({str(error)[:200]}). "
            "Download it again, or save it with an alpha tensor for each module"
        ) from error
    return kept
