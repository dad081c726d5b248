"""What ComfyUI sees of a run: a progress event and a preview per step, and where it may stop it."""

from __future__ import annotations

import comfy.model_management as management
import comfy.utils
from comfy.cli_args import args

from candela.engine import Step
from candela.engine.sampling import OnStep


def reporter() -> OnStep:
    """A step callback for one run. It raises ComfyUI's own exception when the user presses Interrupt."""
    bar = comfy.utils.ProgressBar(1)

    def on_step(step: Step) -> None:
        pictures = step.preview(1)  # as many as are shown
        shown = ("JPEG", pictures[0], args.preview_size) if pictures else None
        bar.update_absolute(step.index, step.steps, shown)

    return on_step


def interrupted() -> bool:
    """For the engine's `cancelled`: raises ComfyUI's exception rather than say yes, so that the prompt ends as
    interrupted and not as failed."""
    management.throw_exception_if_processing_interrupted()
    return False
