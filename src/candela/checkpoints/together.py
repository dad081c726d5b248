"""Do several files form one model? Answered from their headers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.fitting import check_fit
from candela.checkpoints.opening import NEEDED, parts_at
from candela.errors import CheckpointError, MismatchedModel


@dataclass(frozen=True)
class Fit:
    """Whether files form one model.

    Attributes:
        family: of the transformer among them; empty without one.
        problem: which part does not fit, in numbers, and what to do; empty where all do.
        missing: components that a whole model needs and no file has.
    """

    family: str
    problem: str
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.problem and not self.missing


def fit(paths: Sequence[str | os.PathLike[str]]) -> Fit:
    """
    Raises:
        ModelNotFound, DamagedFile: a path that cannot be read at all.
    """
    parts: dict[str, Part] = {}
    for path in [os.fspath(path) for path in paths]:
        try:
            held = parts_at(path)
        except MismatchedModel as error:
            return Fit("", str(error), ())
        if not held:
            return Fit("", f"{path} holds no component of a model that Candela assembles from parts", ())
        for component, part in held.items():
            if component in parts:
                what = component.replace("_", " ")
                return Fit("", f"two files hold a {what}: {parts[component].path} and {path}. Choose one", ())
            parts[component] = part
    transformer = parts.get("transformer")
    family = next((a.name for a in TRANSFORMERS if transformer and a.class_name == transformer.class_name), "")
    missing = tuple(name for name in NEEDED if name not in parts)
    try:
        check_fit(parts)
    except CheckpointError as error:
        return Fit(family, str(error), missing)
    return Fit(family, "", missing)
