"""What a configuration from a stranger may say. A class is built from it before its weights show that it lied: a
milliard layers are built one by one, and a table of positions is filled."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from candela.errors import DamagedFile

# The most that a number may be, by a word in its name; the first that fits. Real ones stay ten times below.
LIMITS = (
    (r"theta|token|_ids?$|factor|seed|window", 2**53),  # stand for themselves: nothing is built in their number
    (r"layers|blocks|depth", 1000),
    (r"vocab|position|length|seq", 2**21),
    (r"", 2**16),
)
LONGEST_LIST = 5000
DEEPEST = 8


def check_config(path: Path, config: dict[str, Any], tensors: int | None = None) -> None:
    """Refuses what cannot be a component; `tensors`: how many its files hold, where it has weights.

    Raises:
        DamagedFile: a number that is out of all proportion, in numbers; or code to be fetched and run.
    """
    for key, value in _values(path, config, "", 0):
        name = key[:80]
        if isinstance(value, str) and key.endswith("_implementation") and "/" in value:
            raise DamagedFile(
                f"{path}: its configuration asks for {name!r} from {value[:80]!r}. Candela never runs code that a "
                "checkpoint names: remove the entry"
            )
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        limit = next(limit for pattern, limit in LIMITS if re.search(pattern, key))
        if limit == 1000 and tensors is not None:  # every layer has its tensors
            limit = min(limit, tensors)
        if abs(value) > limit:
            shown = value if abs(value) < 10**30 else "a number of more than 30 digits"
            raise DamagedFile(
                f"{path}: its configuration has {name!r} = {shown}"
                f"{f', and the files hold {tensors} tensors' if limit == tensors else f', where {limit} is the most'}. "
                "The configuration and the weights must come from the same model"
            )


def check_kinds(path: Path, config: dict[str, Any], cls: Any) -> None:
    """Are the values that `cls` is built from numbers where it has numbers? It stores them as they are, and would fail
    in the middle of a picture.

    Raises:
        DamagedFile: one is not.
    """
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):  # names that only a type checker imports
        hints = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name not in config or name == "self":
            continue
        value, default, hint = config[name], parameter.default, hints.get(name)
        either = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        kinds = set(typing.get_args(hint) if either else (hint,)) - {None}
        if (kinds and kinds <= {int, float, type(None)}) or type(default) is float:
            fits = _is_number(value) or (value is None and (type(default) is not float or type(None) in kinds))
        elif type(default) is int or (isinstance(default, (list, tuple)) and default and _are_numbers(default)):
            fits = value is None or _are_numbers(value)  # one for each block, where the class says nothing else
        else:
            continue
        if not fits or (type(value) is type(default) is int and value < 0 < default):
            wanted = "a positive number" if fits else "a number"
            raise DamagedFile(
                f"{path}: its configuration has {name!r} = {str(value)[:80]!r} where {wanted} belongs. Download it "
                "again, or take it from the published model"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    """A number, or a list of them."""
    if isinstance(value, (list, tuple)):
        return all(each is None or _are_numbers(each) for each in value)
    return _is_number(value)


def _values(path: Path, value: Any, key: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Every number and text below `value`, with the nearest name above it."""
    if isinstance(value, (dict, list)):
        if depth > DEEPEST or len(value) > LONGEST_LIST:
            raise DamagedFile(
                f"{path}: its configuration has {len(value)} values in {key[:80]!r}, {depth} levels deep. No model "
                "needs as many; download it again"
            )
        for name, inner in value.items() if isinstance(value, dict) else ((key, inner) for inner in value):
            yield from _values(path, inner, name, depth + 1)
    else:
        yield key, value


def number(config: dict[str, Any], *names: str) -> int | None:
    """The first of `names` that `config` has as a number."""
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and abs(value) < 2**53), None)
