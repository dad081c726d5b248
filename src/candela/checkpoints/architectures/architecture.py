"""How a component is recognised by the names of its tensors, whatever program wrote them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Renames = tuple[tuple[str, str | tuple[str, ...]], ...]

MAX_PREFIXES = 8  # of one kind of component; a file with more was made to keep us busy

# A fused projection's rows: query, key, value.
FUSED = (r"\.qkv\.", (".to_q.", ".to_k.", ".to_v."))


@dataclass(frozen=True)
class Piece:
    """Where a stored tensor, or a LoRA's module, goes: a name in the library's own class, and which of its fused
    parts (0 query, 1 key, 2 value), None for all of it."""

    name: str
    part: int | None = None


@dataclass(frozen=True)
class Wants:
    """What a transformer needs beside it.

    Attributes:
        text_encoder: the kind, by its architecture's name; `text_width` is that of the published models.
        text_width_key, channels_key: where the transformer's configuration keeps the width of text features and the
            number of latent channels.
        vae: the autoencoder, in words.
    """

    text_encoder: str
    text_width: int
    text_width_key: str
    vae: str
    channels_key: str = "in_channels"


@dataclass(frozen=True)
class Architecture:
    """One kind of component.

    Attributes:
        name: the family of a transformer (z-image), the kind of a text encoder (qwen3) or VAE.
        component: transformer, text_encoder, vae, controlnet.
        library, class_name: of the class that it loads into; empty for what is only recognised.
        anchors: endings of stored names, one of which any such file has; what stands before it is the prefix.
        marks: names that must all be there, each in every program's spelling.
        absent: patterns of stored names that its relatives have and it has not.
        renames: (pattern, replacement) in turn, from any program's names to the class's own. A replacement of
            several names means that all of them share the tensor.
        ignored: patterns of tensors (after renaming) that the class has no use for.
        config: shapes by renamed name -> what the class is built from; empty where the shapes do not tell.
        sizes: the part of it that the shapes always tell.
        published: width -> number of layers of the published models.
        least_words: a smaller vocabulary is another model's, of the same names.
        wants: of a transformer, the components that it works with.
        norm_offset: what llama.cpp adds to every norm's weight when it writes a GGUF.
    """

    name: str
    component: str
    library: str
    class_name: str
    anchors: tuple[str, ...]
    marks: tuple[tuple[str, ...], ...]
    renames: Renames = ()
    ignored: tuple[str, ...] = ()
    config: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}
    sizes: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}
    published: Mapping[int, int] = field(default_factory=dict)
    least_words: int = 0
    absent: tuple[str, ...] = ()
    wants: Wants | None = None
    norm_offset: float = 0.0

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """Every prefix below which `names` holds such a component."""
        names = dict.fromkeys(names)
        ends = (name.removesuffix(anchor) for anchor in self.anchors for name in names if name.endswith(anchor))
        candidates = dict.fromkeys(prefix for prefix in ends if not prefix or prefix.endswith("."))
        marked = [
            prefix
            for prefix in candidates
            if all(any(prefix + spelling in names for spelling in mark) for mark in self.marks)
        ]
        return [prefix for prefix in marked[:MAX_PREFIXES] if not self._foreign(prefix, names)]

    def _foreign(self, prefix: str, names: Iterable[str]) -> bool:
        below = [name.removeprefix(prefix) for name in names if self.absent and name.startswith(prefix)]
        return any(re.search(pattern, name) for pattern in self.absent for name in below)

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """Names without prefix -> by the class's own name the stored one. Fused projections stay fused."""
        return {own: name for name in names for own in self._own(name)}

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Where the tensor `name` (without prefix) goes. A name of the class's own stays as it is."""
        pattern, parts = FUSED
        pieces = []
        for own in self._own(name):
            if re.search(pattern, own):
                pieces += [Piece(re.sub(pattern, part, own), k) for k, part in enumerate(parts)]
            else:
                pieces.append(Piece(own))
        return tuple(pieces)

    def _own(self, name: str) -> list[str]:
        names = [name]
        for pattern, replacement in self.renames:
            options = (replacement,) if isinstance(replacement, str) else replacement
            names = list(dict.fromkeys(re.sub(pattern, option, each) for each in names for option in options))
        return names

    def ignores(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.ignored)


def count(shapes: Shapes, pattern: str) -> int:
    """How many blocks there are: one more than the highest number that `pattern`'s group finds."""
    numbers = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) for match in numbers if match), default=-1) + 1
