"""Candela: Z-Image and Lumina text-to-image models through diffusers, with one engine behind every door.

    import candela

    engine = candela.Engine.load("demo")
    result = engine.generate(candela.Request("a red star on a blue background", seed=7))
    result.images[0].show()

Nothing heavy is imported until a name below is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "AppliedLora": "candela.engine",
    "Engine": "candela.engine",
    "Lora": "candela.engine",
    "Request": "candela.engine",
    "Result": "candela.engine",
    "Seconds": "candela.engine",
    "Step": "candela.engine",
    "Conditioning": "candela.families",
    "Model": "candela.checkpoints",
    "Identity": "candela.checkpoints",
    "identify": "candela.checkpoints",
    "Fit": "candela.checkpoints",
    "fit": "candela.checkpoints",
    "Record": "candela.record",
    "read_record": "candela.record",
    "CandelaError": "candela.errors",
    "InvalidRequest": "candela.errors",
    "CheckpointError": "candela.errors",
    "ModelNotFound": "candela.errors",
    "DamagedFile": "candela.errors",
    "MismatchedModel": "candela.errors",
    "GenerationError": "candela.errors",
    "OutOfMemory": "candela.errors",
    "OutputError": "candela.errors",
    "InstallError": "candela.errors",
    "SourceError": "candela.errors",
    "WrongContent": "candela.errors",
    "NoSpace": "candela.errors",
    "Conflict": "candela.errors",
    "Cancelled": "candela.errors",
    "CandelaWarning": "candela.errors",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from candela.checkpoints import Fit as Fit
    from candela.checkpoints import Identity as Identity
    from candela.checkpoints import Model as Model
    from candela.checkpoints import fit as fit
    from candela.checkpoints import identify as identify
    from candela.engine import AppliedLora as AppliedLora
    from candela.engine import Engine as Engine
    from candela.engine import Lora as Lora
    from candela.engine import Request as Request
    from candela.engine import Result as Result
    from candela.engine import Seconds as Seconds
    from candela.engine import Step as Step
    from candela.errors import Cancelled as Cancelled
    from candela.errors import CandelaError as CandelaError
    from candela.errors import CandelaWarning as CandelaWarning
    from candela.errors import CheckpointError as CheckpointError
    from candela.errors import Conflict as Conflict
    from candela.errors import DamagedFile as DamagedFile
    from candela.errors import GenerationError as GenerationError
    from candela.errors import InstallError as InstallError
    from candela.errors import InvalidRequest as InvalidRequest
    from candela.errors import MismatchedModel as MismatchedModel
    from candela.errors import ModelNotFound as ModelNotFound
    from candela.errors import NoSpace as NoSpace
    from candela.errors import OutOfMemory as OutOfMemory
    from candela.errors import OutputError as OutputError
    from candela.errors import SourceError as SourceError
    from candela.errors import WrongContent as WrongContent
    from candela.families import Conditioning as Conditioning
    from candela.record import Record as Record
    from candela.record import read_record as read_record


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'candela' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
