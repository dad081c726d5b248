"""Which placement a model gets on a machine, what it will take, and what else there would be. Policy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from candela.checkpoints import Checkpoint
from candela.checkpoints.announced import announced, published_bytes
from candela.checkpoints.card_memory import RESERVED, WORK
from candela.checkpoints.headers import read_header
from candela.checkpoints.opening import read_checkpoint
from candela.checkpoints.published import PUBLICATIONS
from candela.engine import cards, preview
from candela.engine.cards import PROCESS, Machine
from candela.engine.device import pick_device, pick_dtype
from candela.engine.ladder import ORDER, Placement, Rung
from candela.engine.placing import CHUNK
from candela.engine.plan import Component, Option, Plan, Stage
from candela.errors import InvalidRequest, ModelNotFound
from candela.families import Defaults, Family, family_of

if TYPE_CHECKING:
    from candela.engine.measuring import Costs
    from candela.engine.skeletons import Weights

FLOATS = ("F64", "F32", "F16", "BF16")
SIZES = (8, 12, 16, 24, 32, 48, 80)  # GiB that cards have
EIGHT_BITS = 0.51  # of a transformer's bytes in 16 bits is what fast mode takes (docs/fast.md)
RUNGS = [Rung(placement, tiled) for placement in ORDER for tiled in (False, True)]


@dataclass(frozen=True)
class Measured:
    """A model, whatever the machine: bytes of weights by component, and what its stages cost at one size."""

    weights: Mapping[str, Weights]
    costs: Costs
    defaults: Defaults

    def stages(self, rung: Rung, machine: Machine) -> tuple[Stage, ...]:
        def seconds(cost: object) -> float:
            return cost.seconds(machine.flops, machine.bandwidth)  # type: ignore[attr-defined]

        w, costs = self.weights, self.costs
        encoders = [w[name] for name in w if name.startswith("text_encoder")]
        text, body, vae = sum(e.total for e in encoders), w["transformer"], w["vae"].total
        decode = costs.tiled if rung.tiled else costs.decode
        times = [seconds(costs.encode), self.defaults.steps * seconds(costs.step), seconds(decode)]
        if rung.placement is Placement.RESIDENT:
            there = [vae + text + body.total] * 3
        elif rung.placement is Placement.RELEASED:
            there = [vae + text, vae + body.total, vae + body.total]
            times[0] += text / machine.link
            times[1] += body.total / machine.link
        else:
            ahead = 2 if machine.device == "cuda" else 1  # blocks that are there at once
            large = max(encoders, key=lambda e: e.total)
            there = [vae + e.fixed + (ahead + kept) * e.block for e, kept in ((large, 0), (body, rung.kept))]
            there += there[1:] if rung.kept else [vae]
            together = max if machine.device == "cuda" else lambda a, b: a + b
            step, moved = seconds(costs.step), body.total - rung.kept * body.block
            times[0] = together(times[0], text / machine.link)
            # Those that stay were away for the prompt: in the first step all come.
            times[1] = together(step, body.total / machine.link)
            times[1] += (self.defaults.steps - 1) * together(step, moved / machine.link)
        works = (costs.encode.peak_bytes, costs.step.peak_bytes, decode.peak_bytes)
        return tuple(Stage(*each) for each in zip(("encode", "denoise", "decode"), there, works, times))

    @property
    def largest(self) -> int:
        """The most that a stage takes with no other component beside its own, as ComfyUI's memory manager has it."""
        w, costs = self.weights, self.costs
        works = {"transformer": costs.step.peak_bytes, "vae": costs.decode.peak_bytes}
        return max(weights.total + works.get(name, costs.encode.peak_bytes) for name, weights in w.items())

    def ram(self, rung: Rung, machine: Machine) -> int:
        """Main memory that a rung takes."""
        if machine.device == "cpu":
            return PROCESS + max(stage.peak for stage in self.stages(rung, machine))
        if rung.placement is Placement.RESIDENT:
            return PROCESS
        return PROCESS + sum(-(-w.total // CHUNK) * CHUNK for name, w in self.weights.items() if name != "vae")

    def fits(self, rung: Rung, machine: Machine) -> bool:
        if self.ram(rung, machine) > machine.ram:
            return False
        peak = max(stage.peak for stage in self.stages(rung, machine))
        return machine.device == "cpu" or peak + RESERVED <= machine.memory

    def best(self, machine: Machine) -> tuple[Rung, bool]:
        """The first rung that fits, and that it does; the smallest, if none does."""
        fitting = next((rung for rung in RUNGS if self.fits(rung, machine)), None)
        if fitting:
            return self._filled(fitting, machine), True
        return min(RUNGS, key=lambda rung: max(s.peak for s in self.stages(rung, machine))), False

    def _filled(self, rung: Rung, machine: Machine) -> Rung:
        """`rung`, with as many blocks kept as there is room for beside twice the largest work of all stages: pictures
        are decoded while they stay, and several at once shall not drive them out."""
        if rung.placement is not Placement.STREAMED:
            return rung
        body, stages = self.weights["transformer"], self.stages(rung, machine)
        room = machine.ram - PROCESS if machine.device == "cpu" else machine.memory - RESERVED
        room -= stages[1].weights + 2 * max(stage.activations for stage in stages)
        return replace(rung, kept=max(0, min(room // body.block, body.blocks - 1)))

    def seconds(self, rung: Rung, machine: Machine) -> float:
        return sum(stage.seconds for stage in self.stages(rung, machine))


def measured(
    checkpoint: Checkpoint,
    family: Family,
    dtype: torch.dtype,
    device: str,
    size: tuple[int, int] | None = None,
    precision: str = "",
    previews: bool = False,
) -> Measured:
    """Runs `checkpoint`'s stages without weights (`measuring.py`). With `precision`, the published files of that
    precision are taken for it; with `previews`, those that this machine would show between the steps count.

    Raises:
        CheckpointError, InvalidRequest: as loading it, and asking it for a picture of `size`, would.
    """
    from candela.engine.measuring import measure
    from candela.engine.skeletons import all_weights, quantise_blocks, skeleton

    defaults = family.defaults(checkpoint)
    if size:
        family.check_size(*size)
        defaults = replace(defaults, width=size[0], height=size[1])
    bare = skeleton(checkpoint, family, dtype)
    if precision and precision != "bf16":
        quantise_blocks(bare, precision, dtype)
    weights = dict(all_weights(bare.components))
    if precision:
        in_files = published_bytes(checkpoint.name, precision)
        weights |= {name: weights[name].scaled(in_files[name]) for name in ("transformer", "text_encoder")}
    costs = measure(
        family, bare, width=defaults.width, height=defaults.height, guidance=defaults.guidance, device=device
    )
    if previews:
        shown = preview.work(bare.components.vae, defaults.width, defaults.height, dtype, device)
        costs = replace(costs, step=replace(costs.step, peak_bytes=max(costs.step.peak_bytes, shown)))
    return Measured(weights, costs, defaults)


def plan(
    model: str,
    *,
    vram: int | None = None,
    ram: int | None = None,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    placement: str | None = None,
    machine: Machine | None = None,
    precision: str | None = None,
) -> Plan:
    """How `model` would make a picture, before any weight is read.

    `vram` and `ram` in bytes stand for a card, and main memory, of that size; without `vram` it is this machine's card,
    or its CPU. `size` is (width, height). `placement` and `machine` replace what would be chosen.

    Raises:
        ModelNotFound, MismatchedModel, DamagedFile: as `Engine.load`; a model that is not here, and of unknown size.
        InvalidRequest: a size that the model cannot make, an unknown placement, device or dtype.
    """
    try:
        checkpoint, installed = read_checkpoint(model), True
    except ModelNotFound:
        if model not in PUBLICATIONS:
            raise
        checkpoint, installed = announced(model), False
    family = family_of(checkpoint)
    if family.whole_pipeline:
        raise InvalidRequest(
            f"{family.name} runs whole, as diffusers wrote it, and is not planned: it is always resident. Its weights "
            f"are {checkpoint.bytes / 1e9:.1f} GB as stored"
        )
    machine = machine or _machine(vram, device, dtype)
    if ram is not None:
        machine = replace(machine, ram=ram, memory=ram if machine.device == "cpu" else machine.memory)
    kind = pick_dtype(dtype or ("bfloat16" if machine.device == "cuda" else "float32"), torch.device("cpu"))
    if precision is None and not installed:
        precision = "bf16"
    known = measured(checkpoint, family, kind, machine.device, size, precision or "", previews=True)
    rung, fits = known.best(machine)
    if placement is not None:
        rung = Rung(_placement(placement), rung.tiled)
        fits = known.fits(rung, machine)
    stages = known.stages(rung, machine)
    options = _options(known, rung, machine)
    if not installed and precision == "bf16" and rung.placement is not Placement.RESIDENT:
        options += _precisions(checkpoint, family, kind, machine, size, known.seconds(rung, machine))
    label = precision if precision and precision != "bf16" else str(kind).removeprefix("torch.")
    return Plan(
        model=model,
        installed=installed,
        machine=machine.name,
        device=machine.device,
        memory_bytes=machine.memory,
        reserved_bytes=RESERVED if machine.device == "cuda" else PROCESS,
        link=machine.link,
        link_measured=machine.link_measured,
        width=known.defaults.width,
        height=known.defaults.height,
        steps=known.defaults.steps,
        guidance=known.defaults.guidance,
        placement=rung.placement.value,
        tiled=rung.tiled,
        kept=rung.kept,
        components=_components(checkpoint, known, rung, machine, label, kind),
        stages=stages,
        peak_bytes=max(stage.peak for stage in stages),
        ram_bytes=known.ram(rung, machine),
        seconds=sum(stage.seconds for stage in stages),
        fits=fits,
        options=options,
    )


def _machine(vram: int | None, device: str | None, dtype: str | None) -> Machine:
    """A card of `vram` bytes, or what is here."""
    if vram is not None:
        return cards.of_memory(vram)
    place = pick_device(device)
    return cards.this_machine(place, pick_dtype(dtype, place))


def _components(
    checkpoint: Checkpoint, known: Measured, rung: Rung, machine: Machine, label: str, dtype: torch.dtype
) -> tuple[Component, ...]:
    """`label` is the precision of what is not stored in one of its own; the VAE's is always `dtype`."""
    plain = str(dtype).removeprefix("torch.")
    return tuple(
        Component(
            name,
            checkpoint.parts[name].class_name,
            _stored(checkpoint, name) or (label if name != "vae" else plain),
            weights.total,
            _where(name, rung, machine, weights.blocks),
        )
        for name, weights in known.weights.items()
    )


def _placement(name: str) -> Placement:
    try:
        return Placement(name)
    except ValueError:
        known = ", ".join(each.value for each in Placement)
        raise InvalidRequest(f"there is no placement {name!r}: use {known}") from None


def _stored(checkpoint: Checkpoint, name: str) -> str:
    """The precision of quantised weights, which stay as they are stored; empty for plain ones."""
    found = checkpoint.parts[name].found
    main = found.precision.partition(" (")[0] if found else ""
    return "" if main in FLOATS else main


def _where(name: str, rung: Rung, machine: Machine, blocks: int) -> str:
    device = "on the card" if machine.device == "cuda" else "in memory"
    away = "main memory" if machine.device == "cuda" else "its files"
    if name == "vae" or rung.placement is Placement.RESIDENT:
        return device
    if rung.placement is Placement.RELEASED:
        return f"{device} while needed, else in {away}"
    if rung.kept and name == "transformer":
        return f"{rung.kept} of {blocks} blocks stay {device}, the others come one by one from {away}"
    return f"in {away}, block by block {device}"


def _options(known: Measured, rung: Rung, machine: Machine) -> tuple[Option, ...]:
    """The next better rung, with what memory it takes, and the next smaller one."""
    own = known.seconds(rung, machine)
    peaks = {other: max(stage.peak for stage in known.stages(other, machine)) for other in (*RUNGS, rung)}
    peak = peaks[rung]

    def option(other: Rung, what: str) -> Option:
        return Option(what, str(other), peaks[other], own / known.seconds(other, machine))

    number = RUNGS.index(replace(rung, kept=0))
    found = []
    if better := next((other for other in reversed(RUNGS[:number]) if not other.tiled), None):
        needed = (peaks[better] + (RESERVED if machine.device == "cuda" else PROCESS)) / 2**30
        found.append(option(better, f"with {next((s for s in SIZES if s >= needed), math.ceil(needed))} GB"))
    if smaller := next((other for other in RUNGS[number:] if peaks[other] < 0.97 * peak), None):
        found.append(option(smaller, "with less memory"))
    return tuple(found)


def _precisions(
    checkpoint: Checkpoint,
    family: Family,
    dtype: torch.dtype,
    machine: Machine,
    size: tuple[int, int] | None,
    own: float,
) -> tuple[Option, ...]:
    """The most precise of the other published precisions that would be resident here."""
    for precision in list(PUBLICATIONS[checkpoint.name].split)[1:]:
        known = measured(checkpoint, family, dtype, machine.device, size, precision, previews=True)
        rung, fits = known.best(machine)
        if fits and rung.placement is Placement.RESIDENT:
            peak = max(stage.peak for stage in known.stages(rung, machine))
            what = f"candela install {checkpoint.name} --precision {precision}"
            return (Option(what, str(rung), peak, own / known.seconds(rung, machine)),)
    return ()


def pick_rung(
    checkpoint: Checkpoint,
    family: Family,
    device: torch.device,
    dtype: torch.dtype,
    placement: str | None,
    fast: bool = False,
) -> Rung:
    """Where an engine begins: at `placement`, or at the first rung that the free memory allows for one picture of
    the model's usual size. Nothing is measured where it fits with ease.

    Raises:
        InvalidRequest: an unknown placement, or one for a pipeline that runs whole.
    """
    if family.whole_pipeline:
        if placement not in (None, Placement.RESIDENT.value):
            raise InvalidRequest(f"{family.name} runs whole and is always resident; {placement!r} is for other models")
        return Rung()
    if placement is not None:
        return Rung(_placement(placement))
    room = cards.free(device)
    defaults = family.defaults(checkpoint)
    if loaded_bytes(checkpoint, dtype) + max(WORK.values()) * dtype.itemsize * defaults.width * defaults.height <= room:
        return Rung()
    kind = "cuda" if device.type == "cuda" else "cpu"
    known = measured(checkpoint, family, dtype, kind, previews=True)
    if fast:
        body = known.weights["transformer"]
        known = replace(known, weights={**known.weights, "transformer": body.scaled(round(EIGHT_BITS * body.total))})
    machine = Machine("", kind, room + RESERVED, room + PROCESS, 1e13, 1e11, cards.READING)
    if kind == "cuda":
        machine = replace(machine, ram=cards.free(torch.device("cpu")))
    return known.best(machine)[0]


def loaded_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Of all weights in memory, from the headers: plain ones in `dtype`, quantised ones as they are stored."""
    return sum(
        math.prod(tensor.shape) * dtype.itemsize if tensor.dtype in FLOATS else tensor.bytes
        for part in checkpoint.parts.values()
        for tensors in ([part.found.tensors] if part.found else [read_header(file).tensors for file in part.files])
        for tensor in tensors.values()
    )
