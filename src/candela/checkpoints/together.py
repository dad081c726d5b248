"""Do several files form one model? Answered from their headers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.contents import read_contents
from candela.checkpoints.fitting import check_fit
from candela.checkpoints.lora.file import read_lora
from candela.checkpoints.opening import NEEDED, parts_at, tokenizer_of
from candela.errors import CheckpointError, MismatchedModel


@dataclass(frozen=True)
class Fit:
    """Whether files form one model.

    Attributes:
        family: of the transformer among them; empty without one.
        problem: which part does not fit, in numbers, and what to do; empty where all do.
        missing: components that a whole model needs and no file has; a tokenizer that the text encoder does not bring.
    """

    family: str
    problem: str
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.problem and not self.missing


def fit(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Fit:
    """Of LoRAs among them only the family is compared; whether every module fits is seen when one is applied.

    Raises:
        ModelNotFound, DamagedFile: a path that cannot be read at all.
    """
    parts: dict[str, Part] = {}
    loras: dict[str, str | None] = {}
    for path in [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]:
        if (family := _lora_for(path)) is not None:
            loras[path] = family
            continue
        try:
            held = parts_at(path)
        except MismatchedModel as error:
            return Fit("", str(error), ())
        if not held:
            return Fit("", f"{path} holds no component of a model that Candela assembles from parts", ())
        for component, part in held.items():
            if component in parts:
                what = component.replace("_", " ")
                return Fit("", f"two files hold a {what}: {parts[component].path} and {path}. Choose one", ())
            parts[component] = part
    transformer = parts.get("transformer")
    family = next((a.name for a in TRANSFORMERS if transformer and a.class_name == transformer.class_name), "")
    missing = [name for name in NEEDED if name not in parts]
    try:
        check_fit(parts)
    except CheckpointError as error:
        return Fit(family, str(error), tuple(missing))
    if family and "text_encoder" in parts and not _has_tokenizer(parts["text_encoder"], family):
        missing.append("tokenizer")
    wrong = next((path for path, made_for in loras.items() if made_for and family and made_for != family), None)
    problem = (
        f"{wrong} is a LoRA for {loras[wrong]}; the model is {family}. Choose a LoRA for {family}" if wrong else ""
    )
    return Fit(family, problem, tuple(missing))


def _lora_for(path: str) -> str | None:
    """The family that a LoRA was made for, empty where its names do not tell; None for what is no LoRA."""
    if not os.path.isfile(path):
        return None
    try:
        return read_lora(path).family or ""
    except CheckpointError:
        return None


def _has_tokenizer(text_encoder: Part, family: str) -> bool:
    folder = text_encoder.path.parent
    if text_encoder.found is None and (folder / "model_index.json").is_file():
        return (folder / "tokenizer").is_dir()
    try:
        tokenizer_of(read_contents(text_encoder.path) if text_encoder.found else text_encoder, text_encoder, family)
    except MismatchedModel:
        return False
    return True
