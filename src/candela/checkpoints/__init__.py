"""Files to components: find a model, read what it is from its headers, load its weights.

Everything but the loading works without torch, which takes a second to import.
"""

from typing import TYPE_CHECKING

from candela.checkpoints.catalogue import CATALOGUE, Entry, Model, find, installed
from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.folder import read_folder
from candela.checkpoints.identity import Identity, identify
from candela.checkpoints.opening import read_checkpoint
from candela.checkpoints.together import Fit, fit

if TYPE_CHECKING:
    from candela.checkpoints.loading import Components as Components
    from candela.checkpoints.loading import load_components as load_components
    from candela.checkpoints.loading import part_class as part_class

__all__ = [
    "CATALOGUE",
    "Checkpoint",
    "Components",
    "Entry",
    "Fit",
    "Identity",
    "Model",
    "Part",
    "find",
    "fit",
    "identify",
    "installed",
    "load_components",
    "part_class",
    "read_checkpoint",
    "read_folder",
]


def __getattr__(name: str) -> object:
    if name in ("Components", "load_components", "part_class"):
        from candela.checkpoints import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
