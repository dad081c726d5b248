"""Do components fit each other? Answered from their headers."""

from __future__ import annotations

from collections.abc import Mapping

from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.architectures.text_encoders import KNOWN, known_as
from candela.checkpoints.checkpoint import Part
from candela.errors import MismatchedModel


def check_fit(parts: Mapping[str, Part]) -> None:
    """Do those of transformer, text encoder and VAE that there are fit each other?

    Raises:
        MismatchedModel: a text encoder of another kind, or two widths that differ, in numbers.
    """
    transformer, text_encoder, vae = (parts.get(name) for name in ("transformer", "text_encoder", "vae"))
    architecture = next((a for a in TRANSFORMERS if transformer and a.class_name == transformer.class_name), None)
    if transformer is None or architecture is None or architecture.wants is None:
        return
    wants = architecture.wants
    if text_encoder is not None:
        expected, found = transformer.config.get(wants.text_width_key), text_encoder.config.get("hidden_size")
        kind = text_encoder.found.architecture.name if text_encoder.found else text_encoder.config.get("model_type")
        if expected != found or (kind or wants.text_encoder) != wants.text_encoder:
            wanted = known_as(wants.text_encoder, expected) or f"a {wants.text_encoder}"
            given = known_as(kind, found) or text_encoder.class_name
            usual = KNOWN[wants.text_encoder, wants.text_width]
            raise MismatchedModel(
                f"the transformer {transformer.path} expects text features of width {str(expected)[:40]} ({wanted}); "
                f"the text encoder {text_encoder.path} gives {str(found)[:40]} ({given}). Use {wanted} as text encoder"
                f"{'' if expected == wants.text_width else f' ({architecture.name} as published takes {usual})'}"
            )
    if vae is not None:
        expected, found = transformer.config.get(wants.channels_key), vae.config.get("latent_channels")
        if expected != found:
            raise MismatchedModel(
                f"the transformer {transformer.path} works on {str(expected)[:40]} latent channels; the VAE "
                f"{vae.path} has {str(found)[:40]}. Use the VAE that belongs to the model: {wants.vae}"
            )
