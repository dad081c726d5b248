"""Where the components are when a stage begins: policy, apart from the stages' work."""

from __future__ import annotations

from typing import Protocol


class Residency(Protocol):
    """Brings components to the engine's device. It may send others away to make room."""

    def need(self, component: str, pixels: int = 0) -> None:
        """Returns once `component` (transformer, text_encoder or vae) is on the engine's device, with room beside
        it to work on `pixels` at once."""

    def need_all(self, pixels: int = 0) -> None:
        """The same for all components together, as a pipeline that runs whole needs them."""


class Resident:
    """Everything stays on the device it was loaded to."""

    def need(self, component: str, pixels: int = 0) -> None: ...

    def need_all(self, pixels: int = 0) -> None: ...
