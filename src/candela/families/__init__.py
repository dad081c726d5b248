"""What differs between architectures, one small file each.

A new family is one new file and one entry in `FAMILIES`. Pipelines without a file of
their own run through `generic.py`.
"""

from candela.checkpoints import Checkpoint
from candela.families.base import Conditioning, Defaults, Family, Predictor
from candela.families.generic import Generic
from candela.families.lumina_image_2 import LuminaImage2
from candela.families.lumina_next import LuminaNext
from candela.families.z_image import ZImage

__all__ = ["FAMILIES", "Conditioning", "Defaults", "Family", "Predictor", "family_of"]

FAMILIES: tuple[Family, ...] = (ZImage(), LuminaImage2(), LuminaNext())


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that drives `checkpoint`'s pipeline, with its components checked against each other.

    Raises:
        MismatchedModel: no family drives this pipeline, or its components do not fit.
    """
    for family in FAMILIES:
        if checkpoint.pipeline in family.pipelines:
            family.check(checkpoint)
            return family.with_vae(checkpoint.parts["vae"])
    return Generic(checkpoint)
