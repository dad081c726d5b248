"""Do several files form one model? Answered from their headers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from candela.checkpoints import Part
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
    from candela.families import FAMILIES

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
    family = next((f for f in FAMILIES if transformer and f.transformer_class == transformer.class_name), None)
    missing = tuple(name for name in NEEDED if name not in parts)
    if family is None:
        return Fit("", "", missing)
    try:
        family.check_fit(parts)
    except CheckpointError as error:
        return Fit(family.name, str(error), missing)
    return Fit(family.name, "", missing)
