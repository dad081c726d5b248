"""Files to components: find a model, read what it is from its headers, load its weights."""

from candela.checkpoints.catalogue import CATALOGUE, Entry, Model, find, installed
from candela.checkpoints.checkpoint import Checkpoint, Part
from candela.checkpoints.folder import read_folder
from candela.checkpoints.loading import Components, load_components, part_class
from candela.checkpoints.opening import read_checkpoint

__all__ = [
    "CATALOGUE",
    "Checkpoint",
    "Components",
    "Entry",
    "Model",
    "Part",
    "find",
    "installed",
    "load_components",
    "part_class",
    "read_checkpoint",
    "read_folder",
]
