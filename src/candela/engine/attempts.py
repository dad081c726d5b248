"""What happens when memory runs out: one rung down, and the same again."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from candela.checkpoints import Checkpoint, Components, Part, load_components
from candela.checkpoints.again import Files
from candela.checkpoints.loading import hollow_component, light_first, load_component
from candela.engine import memory
from candela.engine.heap import return_at_once, trim
from candela.engine.ladder import Placement, Rung, below, costs
from candela.engine.placing import Host, Shelf
from candela.engine.residency import Placed
from candela.engine.sharing import ROOM
from candela.engine.skeletons import BUILDING, blocks_of
from candela.errors import CandelaWarning, OutOfMemory
from candela.families import Family

Work = TypeVar("Work", bound=Callable[..., Any])


def on_ladder(stage: str) -> Callable[[Work], Work]:
    """Makes a method of Engine a stage (encode, denoise, or decode for all that the VAE does): where memory runs out,
    the engine goes one rung down, says so, and begins the stage again. It stays there.

    Raises:
        OutOfMemory: it was on the last rung, and no other engine of this process has any memory to give.
    """

    def decorate(work: Work) -> Work:
        @functools.wraps(work)
        def attempt(engine: Any, *arguments: Any, **named: Any) -> Any:
            placed = engine.residency
            if not isinstance(placed, Placed):  # somebody else decides
                return work(engine, *arguments, **named)
            with engine._lock, ROOM.shared():
                began = placed.rung
                while True:
                    try:
                        return work(engine, *arguments, **named)
                    except OutOfMemory as error:
                        failure = str(error)
                    # Here the error is gone, and with it what its frames held.
                    before = placed.rung
                    if after := placed.step_down(stage):
                        _say(f"{failure.partition('. ')[0]} ({stage})", before, after, placed.sizes)
                        continue
                    placed.leave()
                    if ROOM.crowded(placed):
                        with ROOM.alone():
                            try:
                                return work(engine, *arguments, **named)
                            except OutOfMemory as error:
                                failure = str(error)
                    placed.rung = began  # no rung helps: the next request shall not pay for it
                    weights = sum(placed.sizes.values()) / 1e9
                    raise OutOfMemory(
                        f"{failure}. (In {stage}; {engine.model} was {before}, with all away that can be of the "
                        f"{weights:.2g} GB beside its VAE)"
                    )

        return attempt  # type: ignore[return-value]

    return decorate


def _say(why: str, before: Rung, after: Rung, sizes: dict[str, int]) -> None:
    warnings.warn(
        f"{why}. One step down, from {before} to {after}: {costs(before, after, sizes)}. It stays so for this engine",
        CandelaWarning,
        stacklevel=4,
    )


def load_placed(
    checkpoint: Checkpoint,
    family: Family,
    rung: Rung,
    *,
    device: torch.device,
    dtype: torch.dtype,
    fast: Callable[[torch.device], Components] | None = None,
) -> tuple[Components, Placed]:
    """The components of `checkpoint`, placed as `rung` says, or on the next rung that there is memory for.

    `fast` loads them to a device in another way than their files have them.

    Raises:
        OutOfMemory: too little for the last rung.
        CheckpointError: as `load_components`.
    """
    with BUILDING, ROOM.shared():
        while True:
            return_at_once()
            try:
                with memory.mapped(device):
                    components, placed = _load(checkpoint, family, rung, device, dtype, fast)
                ROOM.join(placed)
                return components, placed
            except OutOfMemory as error:
                failure = str(error)
            trim()
            after = None if family.whole_pipeline else below(rung, "load")
            if after is None:
                raise OutOfMemory(f"{failure}. (Loading {checkpoint.name}, {rung})")
            _say(f"{failure.partition('. ')[0]} (loading {checkpoint.name})", rung, after, {})
            rung = after


def _load(
    checkpoint: Checkpoint,
    family: Family,
    rung: Rung,
    device: torch.device,
    dtype: torch.dtype,
    fast: Callable[[torch.device], Components] | None,
) -> tuple[Components, Placed]:
    resident = rung.placement is Placement.RESIDENT
    host = device.type == "cuda"
    if resident or host or fast:
        place = torch.device("cpu") if host and not resident else device
        components = fast(place) if fast else load_components(checkpoint, device=place, dtype=dtype)
    else:
        loaded = {
            name: (name != "vae" and not family.whole_pipeline and _away(part, name, dtype))
            or load_component(part, name, device=device, dtype=dtype)
            for name, part in light_first(checkpoint)
        }
        components = Components({name: loaded[name] for name in checkpoint.parts})
    shelves = {}
    for name, module in components.modules.items():
        if name == "vae" or family.whole_pipeline or not blocks_of(module) or (fast and not host):
            module.to(device)
            continue
        # What fast mode computes with is in no file of the model's.
        files = None if fast else Files.of(checkpoint.parts[name], module, dtype)
        source = Host(module, pinned=True, files=files) if host else files
        if source is None:  # only the library can load it, so it stays
            continue
        shelves[name] = Shelf(module, source, device, empty=any(p.is_meta for p in module.parameters()))
        if not resident:
            shelves[name].away()
    return components, Placed(shelves, rung)


def _away(part: Part, name: str, dtype: torch.dtype) -> Any:
    """A component that never was in memory; None where it has to be."""
    module = hollow_component(part, name, dtype=dtype) if part.files else None
    return module if module is not None and blocks_of(module) and Files.of(part, module, dtype) else None
