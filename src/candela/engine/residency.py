"""Where the components are when a stage begins: policy, apart from the stages' work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from candela.checkpoints.exhausted import ran_out
from candela.engine.heap import LARGE, return_at_once, trim
from candela.engine.ladder import Placement, Rung, below
from candela.engine.placing import Shelf


class Residency(Protocol):
    """Brings components to the engine's device. It may send others away to make room."""

    def need(self, component: str, pixels: int = 0) -> None:
        """Returns once `component` (transformer, text_encoder or vae) is on the engine's device, with room beside
        it to work on `pixels` at once."""

    def need_all(self, pixels: int = 0) -> None:
        """The same for all components together, as a pipeline that runs whole needs them."""

    def reach(self, component: str, module: str) -> None:
        """Returns once the weights of `module`, somewhere in `component`, can be read."""


class Resident:
    """Everything stays on the device it was loaded to."""

    def need(self, component: str, pixels: int = 0) -> None: ...

    def need_all(self, pixels: int = 0) -> None: ...

    def reach(self, component: str, module: str) -> None: ...


class Placed:
    """The engine's own: components are where its rung of the ladder says."""

    def __init__(self, shelves: Mapping[str, Shelf], rung: Rung):
        """`shelves`: the components that can be away."""
        self.shelves, self.rung = shelves, rung
        self.pixels = 0  # of the stage at work
        if rung.placement is Placement.RESIDENT:
            return_at_once(LARGE)

    def need(self, component: str, pixels: int = 0) -> None:
        self.pixels = pixels
        placement = self.rung.placement
        if placement is Placement.RESIDENT:
            return self.need_all()
        if component in self.shelves or (placement is Placement.STREAMED and not self.rung.kept):
            for name, shelf in self.shelves.items():
                if name != component:
                    _put_away(shelf)
        if component in self.shelves:
            shelf = self.shelves[component]
            if placement is Placement.RELEASED:
                shelf.whole()
            else:
                shelf.streamed(self.rung.kept if component == "transformer" else 0)

    def need_all(self, pixels: int = 0) -> None:
        self.pixels = pixels or self.pixels
        for shelf in self.shelves.values():
            shelf.whole()

    def reach(self, component: str, module: str) -> None:
        self.need(component)
        if component in self.shelves:
            self.shelves[component].reach(module)

    def leave(self) -> None:
        """Everything that can be is away, until it is needed again: what main memory has no room for stays."""
        for shelf in self.shelves.values():
            _put_away(shelf)
        trim()

    def step_down(self, stage: str) -> Rung | None:
        """Goes to the next rung, and makes the room that it gives; None, and all is as it was, from the last one."""
        after = below(self.rung, stage, self.pixels)
        if after is None or (after.placement is not self.rung.placement and not self.shelves):
            return None
        self.rung = after
        return_at_once()
        if after.placement is not Placement.RESIDENT:
            self.leave()
        trim()
        return after

    @property
    def sizes(self) -> dict[str, int]:
        return {name: shelf.bytes for name, shelf in self.shelves.items()}


def _put_away(shelf: Shelf) -> None:
    """What main memory has no room for stays: whether there is room for the rest, the stage finds out."""
    try:
        shelf.away()
    except Exception as error:
        if not ran_out(error):
            raise
