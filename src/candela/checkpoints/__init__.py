"""Files to components: find a model, read what it is from its headers, load its weights."""

from candela.checkpoints.catalogue import CATALOGUE, Entry, Model, find, installed
from candela.checkpoints.folder import Folder, read_folder
from candela.checkpoints.loading import Components, load_components

__all__ = [
    "CATALOGUE",
    "Components",
    "Entry",
    "Folder",
    "Model",
    "find",
    "installed",
    "load_components",
    "read_folder",
]
