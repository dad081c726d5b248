"""The embedded demo model's world, and a checker that reads its pictures.

    from candela.demo import check

    outcome = check(image, "a small red star in the top left corner on a blue background")
    print(outcome.ok, outcome)

The weights lie in `model/`, an ordinary diffusers folder; MODEL_CARD.md there says how they were made.
"""

from candela.demo.check import Check, check, read_picture, read_prompt
from candela.demo.world import COLOURS, HELD_OUT, PLACES, SHAPES, SIZES, Scene, draw, held_out_prompts

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "PLACES",
    "SHAPES",
    "SIZES",
    "Check",
    "Scene",
    "check",
    "draw",
    "held_out_prompts",
    "read_picture",
    "read_prompt",
]
