"""Components that are not always in memory: put away, brought back, and streamed block by block (`streaming.py`). Work;
who decides is `residency.py`.

Away is where a tensor comes back from: on a GPU main memory, locked so that the copy runs beside the arithmetic; on
the CPU the component's own files. What is away leaves a tensor of the same shape, precision and device behind, which
takes no memory and holds NaN.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch

from candela.engine import cards, memory
from candela.engine.heap import trim
from candela.engine.skeletons import blocks_of, size_of
from candela.engine.streaming import ALIGNED, Ahead, Turn

CHUNK = 1 << 29  # bytes of locked memory that are taken at once
FIXED = -1  # the group of all that is in no block
# Of main memory, what may be locked at most: Windows lets a GPU have half of it, and ComfyUI locks as much. The rest of
# the system lives in what is not locked, and it shall have `LEFT` bytes at any time.
LOCKED = 0.4 if sys.platform == "win32" else 0.75
LEFT = 2_000_000_000


class Source(Protocol):
    """Where tensors come back from."""

    @property
    def names(self) -> Collection[str]: ...

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Called before `tensor` goes."""

    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]: ...


class Host:
    """Main memory: what is locked is copied there once, and stays. Where no more may be locked a tensor is left where
    it lies, if that is main memory or a mapped file; one on a GPU is left to `files`, if they have it."""

    _locked = 0  # bytes, of all in this process

    def __init__(self, module: torch.nn.Module, pinned: bool, files: Source | None = None):
        self.pinned, self.files = pinned, files
        self.names = frozenset(dict(module.named_parameters()) | dict(module.named_buffers()))
        self._kept: dict[str, torch.Tensor] = {}
        # torch rounds locked memory up to a power of two, which for single tensors is half as much again.
        self._chunk = min(CHUNK, 1 << (size_of(module) - 1).bit_length())
        self._left = torch.empty(0, dtype=torch.uint8)

    @torch.inference_mode(False)
    @torch.no_grad()
    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """
        Raises:
            OutOfMemory: there is no main memory for a tensor that is nowhere else.
        """
        if name in self._kept:
            return
        room = self._room(tensor.nbytes)
        if room is None and tensor.device.type == "cpu":
            self._kept[name] = tensor.detach()  # its own name of the same memory: the parameter gets another
        elif room is not None or self.files is None or name not in self.files.names:
            with memory.mapped(torch.device("cpu")):
                room = torch.empty(tensor.nbytes, dtype=torch.uint8) if room is None else room
                self._kept[name] = room.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def _room(self, size: int) -> torch.Tensor | None:
        """Locked memory of that many bytes, if any may be had."""
        taken = -(-size // ALIGNED) * ALIGNED
        if taken > len(self._left):
            chunk = self._lock(max(self._chunk, taken))
            if chunk is None:
                return None
            self._left = chunk
        room, self._left = self._left[:size], self._left[taken:]
        return room

    def _lock(self, size: int) -> torch.Tensor | None:
        if not self.pinned or Host._locked + size > LOCKED * cards.ram():
            return None
        if cards.free(torch.device("cpu")) - size < LEFT:
            return None
        try:
            chunk = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the driver has a limit of its own, or the user (ulimit -l)
            self.pinned = False
            return None
        Host._locked += size
        weakref.finalize(self, Host._unlocked, size)
        return chunk

    @staticmethod
    def _unlocked(size: int) -> None:
        Host._locked -= size

    @torch.inference_mode(False)
    @torch.no_grad()
    def copy(self, places: Mapping[str, torch.Tensor]) -> None:
        """Into the tensors of `places`, by name; from locked memory it goes on beside what the caller does next."""
        there = self._elsewhere(places)
        for name, place in places.items():
            place.copy_(self._kept[name] if name in self._kept else there[name], non_blocking=True)

    @torch.inference_mode(False)
    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]:
        found = {name: self._kept[name] for name in names if name in self._kept}
        here = {name: tensor.to(device, non_blocking=True, copy=True) for name, tensor in found.items()}
        return here | {name: tensor.to(device) for name, tensor in self._elsewhere(names).items()}

    def _elsewhere(self, names: Collection[str]) -> Mapping[str, torch.Tensor]:
        missing = {name for name in names if name not in self._kept}
        return self.files.read(missing, torch.device("cpu")) if missing and self.files is not None else {}


class Shelf:
    """One component: its blocks, and the rest of it, each here or away."""

    def __init__(self, module: torch.nn.Module, source: Source, device: torch.device, *, empty: bool = False):
        """`empty`: nothing is here yet, only tensors of the right shapes, on the meta device."""
        self.module, self.source, self.device = module, source, device
        self.bytes = size_of(module)
        blocks = blocks_of(module)
        group_of = {id(inner): number for number, block in enumerate(blocks) for inner in block.modules()}
        self._groups: dict[int, dict[str, tuple[torch.nn.Module, str]]] = {n: {} for n in (FIXED, *range(len(blocks)))}
        for path, owner in module.named_modules():
            for leaf in (*owner._parameters, *owner._buffers):
                name = f"{path}.{leaf}" if path else leaf
                if name in source.names and getattr(owner, leaf) is not None:
                    self._groups[group_of.get(id(owner), FIXED)][name] = (owner, leaf)
        self._blocks = blocks
        self._here = set() if empty else set(self._groups)
        self._hooks: list[Any] = []
        self._turn: Turn | None = None
        self._hollows: dict[str, torch.Tensor] = {}
        if empty:
            for number in self._groups:
                self.leave_hollow(number)

    def whole(self) -> None:
        """All of it is here."""
        self._stop()
        for number in self._groups.keys() - self._here:
            self.bring(number)

    def away(self) -> None:
        """None of it is."""
        self._stop()
        for number in list(self._here):
            self.drop(number)
        trim()

    def streamed(self, kept: int = 0) -> None:
        """Its blocks come when they are called; `kept` of them stay then, the others go one after the other. What is in
        no block is here."""
        if self._turn:
            return
        count = len(self._blocks)
        # Between two that go there are as many that stay as can be: while those compute, the next one is copied.
        going = {k * count // (count - kept) for k in range(count - kept)}
        staying = set(range(count)) - going
        for number in self._here & going:
            self.drop(number)
        trim()
        if FIXED not in self._here:
            self.bring(FIXED)
        if isinstance(self.source, Host):
            self._turn = Ahead(self, self.source, count, staying)
        else:
            self._turn = Turn(self, count, staying)
        for number, block in enumerate(self._blocks):
            self._hooks.append(block.register_forward_pre_hook(self._turn.hook(number)))

    def reach(self, module: str) -> None:
        """The weights of `module` are here, until a block that is called needs the room."""
        if self._turn:
            groups = self._groups.items()
            number = next(n for n, places in groups if any(name.startswith(f"{module}.") for name in places))
            if number != FIXED:
                self._turn.come(number)

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._turn:
            self._turn.end()
        self._hooks, self._turn = [], None

    def has(self, number: int) -> bool:
        """Is a block here? Its last copy may still be under way (`streaming.Ahead`)."""
        return number in self._here

    def bring(self, number: int) -> None:
        self.place(number, self.read(number))

    def read(self, number: int) -> Mapping[str, torch.Tensor]:
        return self.source.read(self._groups[number].keys(), self.device)

    def place(self, number: int, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, (owner, leaf) in self._groups[number].items():
            _put(owner, leaf, tensors[name])
        self._here.add(number)

    def drop(self, number: int) -> None:
        for name, (owner, leaf) in self._groups[number].items():
            self.source.keep(name, getattr(owner, leaf))
        self.leave_hollow(number)

    def leave_hollow(self, number: int) -> None:
        """A block goes, and nobody keeps it: its source has it."""
        for name, (owner, leaf) in self._groups[number].items():
            if name not in self._hollows:
                self._hollows[name] = _hollow(getattr(owner, leaf), self.device)
            _put(owner, leaf, self._hollows[name])
        self._here.discard(number)

    def tensors(self, number: int) -> dict[str, torch.Tensor]:
        """Those of a block, as they are: of the right shapes and precisions, here or hollow."""
        return {name: getattr(owner, leaf) for name, (owner, leaf) in self._groups[number].items()}


@torch.inference_mode(False)
def _hollow(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    plain = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    value = torch.full((), torch.nan, dtype=tensor.dtype, device=device) if plain else None
    return (torch.empty((), dtype=tensor.dtype, device=device) if value is None else value).expand(tensor.shape)


@torch.inference_mode(False)
def _put(owner: torch.nn.Module, leaf: str, tensor: torch.Tensor) -> None:
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
