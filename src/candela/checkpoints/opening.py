"""What a user typed for a model -> what its files say of themselves."""

from __future__ import annotations

import os

from candela.checkpoints.catalogue import find
from candela.checkpoints.checkpoint import Checkpoint
from candela.checkpoints.folder import read_folder


def read_checkpoint(model: str | os.PathLike[str]) -> Checkpoint:
    """Resolves `model` (a catalogue name, a folder in diffusers layout, the id of a hub repository already on disk)
    and reads its headers.

    Raises:
        ModelNotFound, MismatchedModel, DamagedFile: it is not here, or its files cannot be used.
    """
    found = find(model)
    return read_folder(found.folder, found.name)
