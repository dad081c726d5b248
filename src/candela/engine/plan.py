"""What a plan says. Every size in bytes, every time in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Component:
    """One component: its class, its bytes as it lies in memory, in which precision, and where it is kept."""

    name: str
    class_name: str
    precision: str
    bytes: int
    where: str


@dataclass(frozen=True)
class Stage:
    """One stage at its worst moment: the weights that are there, and what the work takes beside them."""

    name: str
    weights: int
    activations: int
    seconds: float

    @property
    def peak(self) -> int:
        return self.weights + self.activations


@dataclass(frozen=True)
class Option:
    """Another way, a better or a smaller one: what it takes to have it, where it then is, its peak on the device, and
    how many times as fast it is."""

    what: str
    placement: str
    peak_bytes: int
    speed: float

    def __str__(self) -> str:
        pace = f"{self.speed:.1f}x faster" if self.speed >= 1 else f"{1 / self.speed:.1f}x slower"
        pace = "as fast" if 0.95 < self.speed < 1.05 else pace
        return f"{self.what}: {self.placement}, peak {self.peak_bytes / 1e9:.1f} GB, {pace}"


@dataclass(frozen=True)
class Plan:
    """How one model makes one picture on one machine.

    Attributes:
        installed: are its files on this machine? Else sizes are as published.
        memory_bytes: of the device; `reserved_bytes` of it are not ours.
        link: bytes a second at which weights come from where they are put away: measured here, or as assumed of such
            a machine.
        placement: resident, released or streamed (`engine/ladder.py`); `tiled`: decoding in pieces; `kept`: how many
            of the transformer's blocks stay while the others are streamed.
        peak_bytes: on the device; `ram_bytes` in main memory, the process itself included.
        seconds: for a picture from a new prompt, when the model is loaded.
        fits: does it, as far as this tells? Else it is the smallest way there is.
    """

    model: str
    installed: bool
    machine: str
    device: str
    memory_bytes: int
    reserved_bytes: int
    link: float
    link_measured: bool
    width: int
    height: int
    steps: int
    guidance: float
    placement: str
    tiled: bool
    kept: int
    components: tuple[Component, ...]
    stages: tuple[Stage, ...]
    peak_bytes: int
    ram_bytes: int
    seconds: float
    fits: bool
    options: tuple[Option, ...] = ()
