"""A LoRA file as its header describes it; no tensor is read.

Names are a prefix (whose program wrote it), a module of the model, and the role of the tensor:

    transformer.layers.0.attention.to_q.lora_A.weight           diffusers, peft
    base_model.model.layers.0.attention.to_q.lora_A.weight      peft itself
    diffusion_model.layers.0.attention.qkv.lora_A.weight        ComfyUI, and most trainers for it
    lora_unet_layers_0_attention_qkv.lora_down.weight           kohya's scripts
    lycoris_layers_0_attention_qkv.lokr_w1                      LyCORIS
    lora_transformer_layers_0_attention_to_q.lora_down.weight   OneTrainer
    pipe.dit.layers.0.attention.to_q.lora_A.default.weight      DiffSynth-Studio
    transformer_layers_0_attention_to_q.lora_down.weight        diffusers' export for kohya's scripts
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from candela.checkpoints.headers import Header, StoredTensor, read_header
from candela.checkpoints.lora.guessing import family_of_names
from candela.checkpoints.lora.methods import method_of
from candela.checkpoints.lora.settings import Settings, read_settings
from candela.errors import InvalidRequest, MismatchedModel, ModelNotFound

PEFT = "base_model.model."
# Of the part of a pipeline that a trainer held, and of what torch wraps a model in; in any order, one after the other.
DOTTED = (
    PEFT, "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "pipe.dit.", "pipe.", "dit.", "model.",
    "module.", "_orig_mod.",
)  # fmt: skip
FLAT = re.compile(r"lora_unet_|lora_transformer_|lycoris_|transformer_(?!blocks)")
TEXT = re.compile(r"^(base_model\.model\.)?(lora_te\d*_|(lycoris_)?text_encoders?[._\d]|te\d?\.|cond_stage_model\.)")
ROLE = re.compile(
    r"^(?P<module>.+?)\.(?P<role>lora_[AB]|lora_(?:down|up|mid)|lora(?:_linear_layer)?\.(?:down|up)|alpha|dora_scale|"
    r"lora_magnitude_vector|magnitude|lokr_w[12](?:_[ab])?|lokr_t2|hada_w[12]_[ab]|hada_t[12]|diff_b|diff|set_weight|"
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
        """The inner size of its factors; None where both of a LoKr's are whole, or there are none."""
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
        settings: peft's own, where they came along.
    """

    path: Path
    bytes: int
    naming: str
    family: str | None
    modules: tuple[LoraModule, ...]
    text_encoder: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    settings: Settings | None = None
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
        """What a module's product is multiplied with. `alpha` is the file's tensor for it, if it has one.

        alpha / rank (https://arxiv.org/abs/2106.09685, 4.1). Without an alpha anywhere it is 1, as in ComfyUI, kohya's
        scripts and diffusers, and so it is for a LoKr of two whole factors, which has no rank: LyCORIS takes its alpha
        for its rank. Where peft's settings came along, theirs count: then such a LoKr is divided by their r.

        Raises:
            MismatchedModel: the file's alpha is another than that of the settings, or nought.
        """
        if alpha == 0:
            raise MismatchedModel(
                f"{self.path}: {module.stored} has the alpha 0, which some programs take for its rank and others for "
                "no strength at all. Save it with the alpha that is meant"
            )
        settings = self.settings
        rank: float | None = module.rank
        if settings is not None:
            said = settings.alpha_of(module.stored)
            if alpha is not None and not math.isclose(alpha, said, rel_tol=0.01):  # it may be stored in 16 bits
                raise MismatchedModel(
                    f"{self.path}: {module.stored} has the alpha {alpha:g}, and {said:g} by peft's settings. Which of "
                    "them is meant is not known; save it with one of them"
                )
            rank = settings.rank_of(module.stored) if rank is None else rank
            alpha = said
        if alpha is None or not rank:
            return 1.0
        return alpha / (math.sqrt(rank) if settings is not None and settings.rank_stabilised else rank)

    def uses_alpha(self, module: LoraModule) -> bool:
        """False for a LoKr of two whole factors, whose alpha may be any number (ai-toolkit's is 9999999999)."""
        return module.rank is not None or self.settings is not None


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Reads the header of a LoRA file, of whatever model.

    Raises:
        ModelNotFound: no such file.
        DamagedFile: not safetensors, or truncated.
        MismatchedModel: it holds no LoRA.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise ModelNotFound(f"there is no LoRA file {path}: check the name and the folder")
    return lora_of(read_header(path))


def lora_of(header: Header) -> LoraFile:
    """
    Raises:
        MismatchedModel: no LoRA.
        CheckpointError: peft's settings beside it cannot be used.
    """
    groups: dict[str, LoraModule] = {}
    prefixes: list[str] = []
    text: list[str] = []
    unknown: list[str] = []
    for name, tensor in header.tensors.items():
        if len(name) > LONGEST_NAME:
            unknown.append(name)
        elif TEXT.search(name):
            text.append(name)
        elif match := ROLE.match(name):
            prefix, module = _split(match["module"])
            prefixes.append(prefix)
            # Together, even if one of them is spelled otherwise: diffusers' export for kohya's scripts does that.
            tensors = groups.setdefault(module, LoraModule(module, match["module"], {})).tensors
            if tensors.setdefault(_role(match), tensor) is not tensor:
                unknown.append(name)
        else:
            unknown.append(name)
    if method := method_of(header.tensors):
        found, names = method
        raise MismatchedModel(
            f"{header.path} is no LoRA but {found}: {len(names)} of its {len(header.tensors)} tensors ({some(names)}). "
            "Candela applies LoRA, DoRA, LoHa, LoKr and whole differences (.diff). Merge it into its model with the "
            "program that made it, and load the merged model"
        )
    if not groups and not any(ROLE.match(name) for name in text):
        raise MismatchedModel(
            f"{header.path} holds no LoRA: none of its {len(header.tensors)} tensors is named like a part of one "
            f"(they are {some(list(header.tensors)) or 'none'}). A whole model is chosen as the model, not as a LoRA"
        )
    if header.format != "safetensors":
        raise MismatchedModel(f"{header.path} is a LoRA in {header.format}. Take its safetensors version")
    modules = tuple(groups.values())
    return LoraFile(
        header.path,
        header.bytes,
        next(iter(prefixes), ""),
        family_of_names({module.name: _inputs(module) for module in modules}, header.metadata),
        modules,
        tuple(text),
        tuple(unknown),
        read_settings(header, [module.stored for module in modules]),
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
    flat = FLAT.match(rest)
    rest = rest[flat.end() :] if flat else rest
    prefix = name.removesuffix(rest)
    return prefix, with_dots(rest) if flat else rest


def with_dots(name: str) -> str:
    """layers_0_feed_forward_w1 -> layers.0.feed_forward.w1: flat names write an underscore for each dot."""
    return ".".join(re.findall(rf"(?:{'|'.join(WORDS)})(?=[_.]|$)|[^_.]+", name))


def _inputs(module: LoraModule) -> int | None:
    """How many values the module takes, by the shape of a plain LoRA."""
    down = module.tensors.get("down")
    return down.shape[1] if down and len(down.shape) > 1 else None
