"""JSON from strangers. Python takes up to 70 bytes for each of its values, so they are counted before it is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MAX_VALUES = 1_000_000


def parse(data: bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None, *, most: int = MAX_VALUES) -> Any:
    """JSON of at most `most` values, and a quarter of that in lists and objects.

    Raises:
        ValueError: too many values, lists or objects, too deep, not UTF-8, or no JSON.
    """
    if data.count(b",") > most or data.count(b"[") + data.count(b"{") > most // 4:
        raise ValueError(f"it has more than {most} values, or {most // 4} lists and objects")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
