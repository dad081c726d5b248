"""LoRAs on a loaded transformer: put on, exchanged, and taken off without a trace."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints import Checkpoint
from candela.checkpoints.architectures import TRANSFORMERS, Architecture
from candela.checkpoints.lora import Lora, LoraFile, Placement, fit, read_lora, settings_file
from candela.engine.deltas import Addition, Additions, Decomposed, Tensors, delta_from
from candela.engine.residency import Residency
from candela.errors import DamagedFile, InvalidRequest, MismatchedModel

Stamp = tuple[tuple[int, int], ...]  # size and time of each file
CHILD = "candela_loras"  # the name under which a module holds what is added to it


@dataclass(frozen=True)
class AppliedLora:
    """One LoRA that is on.

    Attributes:
        path: of its file, absolute.
        strength: as asked for.
        sha256: of the file, with peft's settings beside it.
        modules: how many of the model's modules it changes: all that the file has something for.
        naming, kinds, ranks: as `LoraFile` says.
    """

    path: str
    strength: float
    sha256: str
    modules: int
    naming: str
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]


class Adapters:
    """The LoRAs of one transformer: a forward hook on each module that one of them changes.

    It works on any module that computes y = W x + b and says `in_features` and `out_features`, quantised ones
    included: only DoRA asks for `weight`, once."""

    def __init__(self, transformer: torch.nn.Module, family: str, dtype: torch.dtype, residency: Residency):
        self.transformer, self.family, self.dtype, self.residency = transformer, family, dtype, residency
        self.architecture = architecture_of(type(transformer).__name__)
        self.applied: tuple[AppliedLora, ...] = ()
        self._state: list[tuple[Lora, Stamp]] = []
        self._handles: dict[str, Any] = {}

    def fit(self, lora: Lora) -> tuple[LoraFile, tuple[Placement, ...]]:
        """From the header alone.

        Raises:
            CheckpointError: as `checkpoints.lora.read_lora` and `fit`.
        """
        file = read_lora(lora.path)
        return file, fit(file, self.architecture, linear_sizes(self.transformer), self.family)

    def replace(self, loras: Sequence[Lora]) -> tuple[AppliedLora, ...]:
        """Takes off what is on and puts `loras` on. After an error, what was on still is.

        Raises:
            CheckpointError: as `fit`, or tensors that cannot be read or hold NaN.
        """
        fits = [(lora, *self.fit(lora)) for lora in loras]
        state = [(lora, stamp(file.path)) for lora, file, _ in fits]
        if state == self._state:
            return self.applied
        if fits:
            self.residency.need("transformer")
        additions: dict[str, list[torch.nn.Module]] = {}
        applied = []
        for lora, file, placements in fits:
            for name, addition in self._additions(lora, file, placements):
                additions.setdefault(name, []).append(addition)
            applied.append(
                AppliedLora(
                    os.path.abspath(file.path),
                    lora.strength,
                    file_sha256(str(file.path), stamp(file.path)),
                    sum(len(placement.targets) for placement in placements),
                    file.naming,
                    file.kinds,
                    file.ranks,
                )
            )
        self.clear()
        for name, parts in additions.items():
            linear = self.transformer.get_submodule(name)
            added = Additions(parts)
            linear.add_module(CHILD, added)
            self._handles[name] = linear.register_forward_hook(added.hook)
        self._state, self.applied = state, tuple(applied)
        return self.applied

    def clear(self) -> None:
        """Takes all of them off: the modules are as they were."""
        for name, handle in self._handles.items():
            handle.remove()
            del self.transformer.get_submodule(name)._modules[CHILD]
        self._handles, self._state, self.applied = {}, [], ()

    def _additions(
        self, lora: Lora, file: LoraFile, placements: Sequence[Placement]
    ) -> list[tuple[str, torch.nn.Module]]:
        if lora.strength == 0:  # not even a rounding
            return []
        found: list[tuple[str, torch.nn.Module]] = []
        for placement, tensors in zip(placements, read_tensors(file, placements)):
            alpha = tensors["alpha"].item() if "alpha" in tensors else None
            scale = file.scale(placement.module, alpha)
            linears = [self.transformer.get_submodule(target.name) for target in placement.targets]
            devices = [_device(linear) for linear in linears]
            dora = "magnitude" in tensors
            weighed = scale if dora else scale * lora.strength
            deltas = [delta_from(tensors, weighed, target.first, target.rows) for target in placement.targets]
            bias = _bias(tensors, scale, lora.strength)
            if dora:  # asks for the weights themselves
                self.residency.reach("transformer", placement.targets[0].name)
            gains = dora_gains(placement, tensors["magnitude"], linears, deltas) if dora else []
            for k, (target, delta) in enumerate(zip(placement.targets, deltas)):
                own = None if bias is None else bias[target.first : target.first + target.rows]
                parts: list[torch.nn.Module] = []
                if dora and delta is not None:
                    parts.append(Decomposed(delta, gains[k], lora.strength))
                    delta = None
                if delta is not None or own is not None:
                    parts.append(Addition(delta, own))
                found += [(target.name, part.to(devices[k], self.dtype)) for part in parts]
        return found


def architecture_of(class_name: str) -> Architecture:
    """By the transformer's class; one that only knows diffusers' own names where there is none."""
    known = {architecture.class_name: architecture for architecture in TRANSFORMERS}
    return known.get(class_name) or Architecture(class_name, "transformer", "diffusers", class_name, (), ())


def linear_sizes(module: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (values out, values in) of every linear module, quantised ones included."""
    sizes = {}
    for name, each in module.named_modules():
        size = getattr(each, "out_features", None), getattr(each, "in_features", None)
        if CHILD not in name and isinstance(size[0], int) and isinstance(size[1], int):
            sizes[name] = (size[0], size[1])
    return sizes


def check_loras(checkpoint: Checkpoint, family: str, loras: Sequence[Lora]) -> None:
    """Would `loras` fit the model? Asked before its weights are read: the transformer is built without any.

    Raises:
        CheckpointError: as `Engine.set_loras`.
    """
    files = [read_lora(lora.path) for lora in loras]
    if not files:
        return
    part = checkpoint.parts.get("transformer")
    if part is None:
        raise MismatchedModel(f"{checkpoint.path} has no transformer, and LoRAs are applied to one only")
    cls = getattr(importlib.import_module(part.library), part.class_name)
    with torch.device("meta"):
        transformer = cls.from_config(part.config)
    sizes = linear_sizes(transformer)
    for file in files:
        fit(file, architecture_of(part.class_name), sizes, family)


def read_tensors(file: LoraFile, placements: Sequence[Placement]) -> list[Tensors]:
    """Each placement's tensors by role, in float32.

    Raises:
        DamagedFile: unreadable, or NaN or infinite values among them.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.path, framework="pt") as opened:
            tensors = [
                {role: opened.get_tensor(tensor.name).float() for role, tensor in placement.module.tensors.items()}
                for placement in placements
            ]
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DamagedFile(f"{file.path}: the LoRA's tensors cannot be read ({error}). Download it again") from error
    for placement, group in zip(placements, tensors):
        if not file.uses_alpha(placement.module):
            group.pop("alpha", None)
        if bad := next((role for role, tensor in group.items() if not tensor.isfinite().all()), None):
            raise DamagedFile(
                f"{file.path}: {placement.module.tensors[bad].name} holds NaN or infinite values. Download it again"
            )
    return tensors


def dora_gains(
    placement: Placement, magnitude: torch.Tensor, linears: Sequence[Any], deltas: Sequence[Any]
) -> list[torch.Tensor]:
    """m / ||W + D|| for each target: [rows, 1], or [1, in] where the magnitudes are the columns'. A fused projection's
    columns run through all its parts."""
    by_row = magnitude.ndim == 1 or magnitude.shape[1] == 1
    squares = []
    for linear, delta in zip(linears, deltas):
        weight = linear.weight.detach().float()
        squares.append((weight + delta.dense().to(weight.device)).square().sum(1 if by_row else 0).cpu())
    if by_row:
        parts = [magnitude.flatten()[t.first : t.first + t.rows] for t in placement.targets]
        return [(m / s.sqrt().clamp_min(EPSILON)).unsqueeze(1) for m, s in zip(parts, squares)]
    fused = len({target.first for target in placement.targets}) > 1
    if fused:
        squares = [sum(squares[1:], squares[0])] * len(squares)
    return [magnitude / s.sqrt().clamp_min(EPSILON) for s in squares]


EPSILON = 1e-12  # a row of zeros has no direction


def _bias(tensors: Tensors, scale: float, strength: float) -> torch.Tensor | None:
    """peft's bias of lora_B is scaled as its product is; a difference of biases (.diff_b) is not."""
    parts = [tensors["up_bias"] * scale] if "up_bias" in tensors else []
    parts += [tensors["diff_b"]] if "diff_b" in tensors else []
    return sum(parts[1:], parts[0]) * strength if parts else None


def _device(linear: torch.nn.Module) -> torch.device:
    return next(itertools.chain(linear.parameters(), linear.buffers())).device


def stamp(path: Path) -> Stamp:
    """Changes when the file does, or peft's settings beside it."""
    stats = [os.stat(each) for each in (path, settings_file(path)) if each is not None]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


@functools.lru_cache(maxsize=64)
def file_sha256(path: str, stamp: Stamp) -> str:
    """Of the file, and of peft's settings beside it where they are there: both make the picture."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if (settings := settings_file(Path(path))) is not None:
        digest.update(settings.read_bytes())
    return digest.hexdigest()


def checked(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """
    Raises:
        InvalidRequest: something else than LoRAs.
    """
    for lora in loras:
        if not isinstance(lora, Lora):
            raise InvalidRequest(f"a LoRA is a Lora, not {type(lora).__name__}: Lora({str(lora)[:80]!r}, 0.8)")
    return tuple(loras)
