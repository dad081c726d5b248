"""Text features of the latest prompts: an equal prompt is not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from candela.families import Conditioning

LIMIT = 128 * 2**20  # bytes: 50 of the longest prompts of Z-Image in bfloat16, or about 1000 usual ones

# (prompts, negative prompts) -> their features
Encode = Callable[[Sequence[str], Sequence[str] | None], Conditioning]


class Embeddings:
    """Of one model's text encoder, whose weights never change. In main memory, where they take none of the card's."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._kept: OrderedDict[tuple[str, bool], torch.Tensor] = OrderedDict()

    def encode(self, prompts: Sequence[str], negatives: Sequence[str] | None, encode: Encode) -> Conditioning:
        """`encode` gets those texts alone that are not here, each once; it is not called where there are none."""
        wanted = [(text, False) for text in prompts] + [(text, True) for text in negatives or ()]
        absent = list(dict.fromkeys(key for key in wanted if key not in self._kept))
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        if absent:
            fresh = [text for text, negative in absent if not negative]
            fresh_negatives = [text for text, negative in absent if negative]
            encoded = encode(fresh, fresh_negatives or None)
            features = (*encoded.positive, *(encoded.negative or ()))
            found |= {key: one.cpu() for key, one in zip(absent, features)}
        for key in wanted:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while sum(one.nbytes for one in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)
        return Conditioning(
            tuple(prompts),
            tuple(found[text, False].clone() for text in prompts),  # a caller may change what it gets
            None if negatives is None else tuple(found[text, True].clone() for text in negatives),
        )
