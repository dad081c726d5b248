"""What ComfyUI sees of a run: a progress event and a preview per step, and where it may stop it."""

from __future__ import annotations

import comfy.model_management as management
import comfy.utils
from PIL import Image

from candela.engine import Step
from candela.engine.sampling import OnStep

PREVIEW_SIDE = 256  # pixels, at least, of the longer side: smaller ones are blurred by JPEG
MAX_SIDE = 512  # ComfyUI scales larger ones down to this


def reporter() -> OnStep:
    """A step callback for one run. It raises ComfyUI's own exception when the user presses Interrupt."""
    bar = comfy.utils.ProgressBar(1)

    def on_step(step: Step) -> None:
        picture = step.preview()[0]
        scale = -(-PREVIEW_SIDE // max(picture.size))
        if scale > 1:
            size = (picture.width * scale, picture.height * scale)
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        bar.update_absolute(step.index, step.steps, ("JPEG", picture, MAX_SIDE))

    return on_step


def interrupted() -> bool:
    """For the engine's `cancelled`: raises ComfyUI's exception rather than say yes, so that the prompt ends as
    interrupted and not as failed."""
    management.throw_exception_if_processing_interrupted()
    return False
