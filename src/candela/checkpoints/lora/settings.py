"""What peft keeps beside a LoRA's tensors, and what it makes of it: in `adapter_config.json` beside the file, or, as
diffusers writes it, in the file's metadata. The rules are those of peft 0.21 (`LoraConfig`, `LoHaConfig`,
`LoKrConfig`, `peft.utils.other.get_pattern_key`)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candela.checkpoints.headers import Header
from candela.errors import CheckpointError

KINDS = ("LORA", "LOHA", "LOKR")
# What init_lora_weights says of the model's own weights. Those that subtract their first factors from them (by how they
# begin: pissa_niter_4) can be saved as an ordinary LoRA (LoraModel._convert_state_dict_for_initial_model).
UNCHANGED = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica", "lycoris")
SUBTRACTED = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA"}
# Settings of peft's LoRA under which its factors mean something else than W + s B A.
VARIANTS = {
    "alora_invocation_tokens": "Activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "layer_replication": "a LoRA of replicated layers",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "a LoRA of parameters (target_parameters)",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QALoRA",
}
LARGEST = 1 << 23  # bytes of adapter_config.json
LONGEST_PATTERN = 500  # characters
PATTERN_SECONDS = 1.0  # for all of a file's patterns and modules: a stranger's expression can run for ever


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        kind: of `KINDS`.
        alpha, rank: of the modules that no pattern names.
        alphas, ranks: by module, as peft's patterns give them.
        rank_stabilised: alpha is divided by sqrt(rank) (https://arxiv.org/abs/2312.03732).
        dora: it has magnitudes; None where that is not said.
        refused: why it is not applied; empty where it is.
    """

    kind: str
    alpha: float
    rank: float
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    dora: bool | None = None
    refused: str = ""

    def alpha_of(self, stored: str) -> float:
        return self.alphas.get(name_for_peft(stored), self.alpha)

    def rank_of(self, stored: str) -> float:
        return self.ranks.get(name_for_peft(stored), self.rank)


def name_for_peft(stored: str) -> str:
    """A module as the file spells it -> its name in the model that peft was given."""
    for prefix in ("base_model.model.", "diffusion_model.", "transformer."):
        if stored.startswith(prefix):
            return stored.removeprefix(prefix)
    return stored


def settings_file(path: Path) -> Path | None:
    """The file beside a LoRA in which peft keeps its settings, if it is there."""
    beside = path.with_name("adapter_config.json")
    return beside if path.name.startswith("adapter_model") and beside.is_file() else None


def read_settings(header: Header, modules: Iterable[str]) -> Settings | None:
    """None: there are none. `modules`: as the file spells them.

    Raises:
        CheckpointError: they are not what peft writes, or their patterns take too long.
    """
    beside = settings_file(header.path)
    try:
        if text := header.metadata.get("lora_adapter_metadata"):
            said = _of_the_transformer(json.loads(text))
        elif beside is not None:
            if (size := beside.stat().st_size) > LARGEST:
                raise ValueError(f"{beside.name} has {size:,} bytes; real ones have some thousands")
            said = dict(json.loads(beside.read_text(encoding="utf-8")))
        else:
            return None
        if not said:
            return None
        return _settings(said, [name_for_peft(stored) for stored in modules])
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{header.path}: the LoRA's settings, as peft writes them, cannot be used ({str(error)[:200]}). "
            "Download it again, or save it with an alpha tensor for each module"
        ) from error


def _of_the_transformer(metadata: dict[str, Any]) -> dict[str, Any]:
    """A pipeline's LoRA says transformer.r; a transformer's own (save_lora_adapter) says r."""
    own = {
        name.removeprefix("transformer."): each for name, each in metadata.items() if name.startswith("transformer.")
    }
    return own or {name: each for name, each in metadata.items() if "." not in name}


def _settings(said: dict[str, Any], names: list[str]) -> Settings:
    kind = str(said.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if refused := _refused(kind, said):
        return Settings(kind, 1.0, 1.0, refused=refused)
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    if missing := next((key for key in (alpha, "r") if key not in said), None):
        raise ValueError(f"{missing} is missing")
    deadline = time.monotonic() + PATTERN_SECONDS
    dora, rank = said.get("use_dora"), _number(said["r"])
    alphas = _by_name(dict(said.get("alpha_pattern") or {}), names, deadline)
    ranks = _by_name(dict(said.get("rank_pattern") or {}), names, deadline)
    if (least := min([rank, *ranks.values()])) <= 0:
        raise ValueError(f"the rank {least:g} is not above 0")
    return Settings(
        kind,
        _number(said[alpha]),
        rank,
        alphas,
        ranks,
        bool(said.get("use_rslora")),
        None if dora is None else bool(dora),
    )


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def _by_name(patterns: dict[str, Any], names: list[str], deadline: float) -> dict[str, float]:
    """As peft.utils.other.get_pattern_key: the first pattern that a name, or an end of it behind a dot, matches.

    Raises:
        ValueError: no regular expressions, or ones that take too long.
    """
    if not patterns:
        return {}
    import regex  # here: most files have no patterns

    if odd := next((key for key in patterns if len(key) > LONGEST_PATTERN), None):
        raise ValueError(f"the pattern {odd[:60]!r}... is longer than {LONGEST_PATTERN} characters")

    def left() -> float:
        if (seconds := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        return seconds

    expressions, found = {}, {}
    try:
        for key, value in patterns.items():
            left()
            expressions[regex.compile(rf"(.*\.)?({key})$")] = _number(value)
        for name in names:
            matches = (value for expression, value in expressions.items() if expression.match(name, timeout=left()))
            if (value := next(matches, None)) is not None:
                found[name] = value
    except regex.error as error:
        raise ValueError(f"the pattern {key!r} is no regular expression: {error}") from error
    except TimeoutError as error:
        raise ValueError(f"its patterns take longer than {PATTERN_SECONDS:g} s") from error
    return found


def _refused(kind: str, said: dict[str, Any]) -> str:
    """Goes on where the file's name ends."""
    if kind not in KINDS:
        return f"is {kind[:40]}, by peft's settings, which Candela does not apply. Use a LoRA, DoRA, LoHa or LoKr"
    start = str(said.get("init_lora_weights") if kind == "LORA" else said.get("init_weights")).lower()[:40]
    if name := next((name for beginning, name in SUBTRACTED.items() if start.startswith(beginning)), None):
        return (
            f"was trained as {name} (init_lora_weights {start!r}), which changes the model's own weights before it "
            "starts, and its factors fit those alone. Save it as an ordinary LoRA, with peft's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), or load the model that it was merged "
            "into"
        )
    if start.startswith("loftq"):
        return (
            f"was trained as LoftQ (init_lora_weights {start!r}), on a model whose weights were replaced by quantised "
            "ones, and its factors fit those alone. Load the model that it was merged into"
        )
    if start not in UNCHANGED:
        return (
            f"has init_lora_weights {start!r} among peft's settings; whether that changes the model's own weights is "
            "not known. Save it as an ordinary LoRA (init_lora_weights true)"
        )
    if variant := next((VARIANTS[key] for key in VARIANTS if said.get(key)), None):
        return f"is {variant}, by peft's settings, which Candela does not apply. Use a plain LoRA"
    return ""
