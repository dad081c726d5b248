"""Blocks that are in memory only while they compute: when each comes, and when it goes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from candela.engine.placing import Host, Shelf

ALIGNED = 256  # bytes: where a tensor begins in memory that holds several, as torch's allocators have it


class Turn:
    """One block at a time."""

    def __init__(self, shelf: Shelf, numbers: Sequence[int]):
        """`numbers`: the blocks that come."""
        self.shelf, self.numbers = shelf, numbers
        self.now: int | None = None

    def hook(self, number: int) -> Any:
        return lambda module, arguments: self.come(number)

    def come(self, number: int) -> None:
        if number == self.now:
            return
        if self.now is not None:
            self.shelf.drop(self.now)
        self.now = None
        self.shelf.bring(number)
        self.now = number

    def end(self) -> None:
        """No more will be called."""


@dataclass
class _Slot:
    """Memory for one block, each block's tensors as they would lie in it, the block that is in it, and the event after
    which it is there."""

    memory: torch.Tensor
    views: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    number: int | None = None
    copied: Any = None


class Ahead(Turn):
    """From main memory: the next block is copied on a stream of its own while this one computes. Two are there at once,
    in memory that is taken once. Nobody waits but the GPU's own streams for each other."""

    @torch.inference_mode(False)
    def __init__(self, shelf: Shelf, host: Host, numbers: Sequence[int]):
        super().__init__(shelf, numbers)
        self.host = host
        self.streams = torch.get_device_module(shelf.device)  # on the CPU there is one, and all is done at once
        self.copying = self.streams.Stream(shelf.device)
        self.after = dict(itertools.pairwise(numbers))  # as they were called the last time
        places = {number: self._places(number) for number in numbers}
        size = max((end for block in places.values() for _, end in block.values()), default=0)
        self.slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=shelf.device)) for _ in numbers[:2]]
        for slot in self.slots:
            slot.views = {number: self._views(slot, number, block) for number, block in places.items()}

    def _places(self, number: int) -> dict[str, tuple[int, int]]:
        """Where a block's tensors begin and end in a slot, in bytes."""
        places, at = {}, 0
        for name, tensor in self.shelf.tensors(number).items():
            places[name] = at, at + tensor.numel() * tensor.element_size()
            at = -(-places[name][1] // ALIGNED) * ALIGNED
        return places

    def _views(self, slot: _Slot, number: int, places: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
        like = self.shelf.tensors(number)
        return {name: slot.memory[a:b].view(like[name].dtype).view(like[name].shape) for name, (a, b) in places.items()}

    def come(self, number: int) -> None:
        if number == self.now:
            return
        if self.now is not None:
            self.after[self.now] = number
        slot = self._fetch(number)
        self._computing().wait_event(slot.copied)
        self.now = number
        if len(self.slots) > 1 and (following := self.after.get(number)) is not None:
            self._fetch(following)

    def end(self) -> None:
        self._computing().wait_stream(self.copying)  # whoever gets the slots' memory next, comes after the last copy

    def _fetch(self, number: int) -> _Slot:
        """Copies a block to where the one is not that was called last; nothing, if it is there."""
        if there := next((slot for slot in self.slots if slot.number == number), None):
            return there
        slot = next((slot for slot in self.slots if slot.number != self.now), self.slots[0])
        if slot.number is not None:
            self.shelf.leave_hollow(slot.number)
        # What was in it may still be computed with: all that is asked of the GPU so far comes first.
        self.copying.wait_event(self._computing().record_event())
        with self.streams.stream(self.copying):
            self.host.copy(slot.views[number])
            slot.copied = self.copying.record_event()
        slot.number = number
        self.shelf.place(number, slot.views[number])
        return slot

    def _computing(self) -> Any:
        return self.streams.current_stream(self.shelf.device)
