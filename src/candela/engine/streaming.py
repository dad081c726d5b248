"""Blocks that are in memory only while they compute: when each comes, and when it goes."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from candela.engine.placing import Host, Shelf

ALIGNED = 256  # bytes: where a tensor begins in memory that holds several, as torch's allocators have it


class Turn:
    """One block at a time, read when it is called. Those of `staying` come the first time, and stay."""

    def __init__(self, shelf: Shelf, count: int, staying: Collection[int]):
        """`count`: of the shelf's blocks."""
        self.shelf, self.count, self.staying = shelf, count, frozenset(staying)
        self.now: int | None = None

    def hook(self, number: int) -> Any:
        return lambda module, arguments: self.come(number)

    def come(self, number: int) -> None:
        if self.shelf.has(number):
            return
        if number not in self.staying:
            if self.now is not None:
                self.shelf.drop(self.now)
            self.now = None
        self.shelf.bring(number)
        if number not in self.staying:
            self.now = number

    def end(self) -> None:
        """No more will be called."""


@dataclass
class _Slot:
    """Memory for one block, and the block that is in it."""

    memory: torch.Tensor
    views: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)  # each block's tensors, if it lay here
    number: int | None = None


class Ahead(Turn):
    """From main memory: the next block is copied on a stream of its own while this one computes. Beside those that stay
    two are there at once, in memory that is taken once. Nobody waits but the GPU's own streams for each other."""

    @torch.inference_mode(False)
    def __init__(self, shelf: Shelf, host: Host, count: int, staying: Collection[int]):
        super().__init__(shelf, count, staying)
        self.host = host
        self.streams = torch.get_device_module(shelf.device)  # on the CPU there is one, and all is done at once
        self.copying = self.streams.Stream(shelf.device)
        self.copied: dict[int, Any] = {}  # block -> the event after which it is there
        self.after = dict(itertools.pairwise(range(count)))  # as they were called the last time
        coming = [number for number in range(count) if number not in self.staying]
        size = max(map(self._size, coming), default=0)
        self.slots = [_Slot(self._memory(size)) for _ in coming[:2]]
        for slot in self.slots:
            slot.views = {number: self._views(slot.memory, number) for number in coming}

    def come(self, number: int) -> None:
        if number == self.now:
            return
        if self.now is not None:
            self.after[self.now] = number
        self._fetch(number)
        if number in self.copied:
            self._computing().wait_event(self.copied[number])
        self.now = number
        if (following := self._following(number)) is not None:
            self._fetch(following)

    def end(self) -> None:
        self._computing().wait_stream(self.copying)  # whoever computes with what is there, comes after the last copy

    def _following(self, number: int) -> int | None:
        """The next block that is not there, as far as the next one that does not stay."""
        for _ in range(self.count):
            following = self.after.get(number)
            if following is None or not self.shelf.has(following):
                return following
            if following not in self.staying:
                return None
            number = following
        return None

    def _fetch(self, number: int) -> None:
        """Begins to copy a block that is not there; one that does not stay to where the one is not that was called
        last."""
        if self.shelf.has(number):
            return
        if number in self.staying:
            views = self._views(self._memory(self._size(number)), number)
        else:
            slot = next((slot for slot in self.slots if slot.number != self.now), self.slots[0])
            if slot.number is not None:
                self.shelf.leave_hollow(slot.number)
            slot.number, views = number, slot.views[number]
        # What was in that memory may still be computed with: all that is asked of the GPU so far comes first.
        self.copying.wait_event(self._computing().record_event())
        with self.streams.stream(self.copying):
            self.host.copy(views)
            self.copied[number] = self.copying.record_event()
        self.shelf.place(number, views)

    def _computing(self) -> Any:
        return self.streams.current_stream(self.shelf.device)

    @torch.inference_mode(False)
    def _memory(self, size: int) -> torch.Tensor:
        memory = torch.empty(size, dtype=torch.uint8, device=self.shelf.device)
        if memory.is_cuda:  # an engine that is gone may have copies under way: the allocator shall wait for them
            memory.record_stream(self.copying)
        return memory

    def _size(self, number: int) -> int:
        return sum(map(_room, self.shelf.tensors(number).values()))

    @torch.inference_mode(False)
    def _views(self, memory: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
        views, at = {}, 0
        for name, like in self.shelf.tensors(number).items():
            views[name] = memory[at : at + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
            at += _room(like)
        return views


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
