"""Do components fit each other? Answered from their headers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.architectures.text_encoders import KNOWN
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.opening import NEEDED, parts_at
from candela.errors import CheckpointError, MismatchedModel


def check_fit(parts: Mapping[str, Part]) -> None:
    """Do those of transformer, text encoder and VAE that there are fit each other?

    Raises:
        MismatchedModel: a text encoder of another kind, or two widths that differ, in numbers.
    """
    transformer, text_encoder, vae = (parts.get(name) for name in NEEDED)
    architecture = next((a for a in TRANSFORMERS if transformer and a.class_name == transformer.class_name), None)
    if transformer is None or architecture is None or architecture.wants is None:
        return
    wants = architecture.wants
    if text_encoder is not None:
        expected, found = transformer.config.get(wants.text_width_key), text_encoder.config.get("hidden_size")
        kind = text_encoder.found.architecture.name if text_encoder.found else text_encoder.config.get("model_type")
        if expected != found or (kind or wants.text_encoder) != wants.text_encoder:
            wanted = KNOWN.get((wants.text_encoder, expected or 0), f"a {wants.text_encoder}")
            given = KNOWN.get((kind or "", found or 0), text_encoder.class_name)
            usual = KNOWN[wants.text_encoder, wants.text_width]
            raise MismatchedModel(
                f"the transformer {transformer.path} expects text features of width {expected} ({wanted}); the text "
                f"encoder {text_encoder.path} gives {found} ({given}). Use {wanted} as text encoder"
                f"{'' if expected == wants.text_width else f' ({architecture.name} as published takes {usual})'}"
            )
    if vae is not None:
        expected, found = transformer.config.get(wants.channels_key), vae.config.get("latent_channels")
        if expected != found:
            raise MismatchedModel(
                f"the transformer {transformer.path} works on {expected} latent channels; the VAE {vae.path} has "
                f"{found}. Use the VAE that belongs to the model: {wants.vae}"
            )


@dataclass(frozen=True)
class Fit:
    """Whether files form one model.

    Attributes:
        family: of the transformer among them; empty without one.
        problem: which part does not fit, in numbers, and what to do; empty where all do.
        missing: components that a whole model needs and no file has.
    """

    family: str
    problem: str
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.problem and not self.missing


def fit(paths: Sequence[str | os.PathLike[str]]) -> Fit:
    """
    Raises:
        ModelNotFound, DamagedFile: a path that cannot be read at all.
    """
    parts: dict[str, Part] = {}
    for path in [os.fspath(path) for path in paths]:
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
    missing = tuple(name for name in NEEDED if name not in parts)
    try:
        check_fit(parts)
    except CheckpointError as error:
        return Fit(family, str(error), missing)
    return Fit(family, "", missing)
