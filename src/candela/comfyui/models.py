"""Loaded models: shared by all nodes that ask for the same one, and known to ComfyUI's memory manager."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher

from candela.checkpoints import Components
from candela.checkpoints.card_memory import WORK
from candela.checkpoints.lora import Lora
from candela.comfyui import names
from candela.engine import Engine
from candela.engine.device import pick_dtype
from candela.errors import OutOfMemory

log = logging.getLogger("candela")


class Managed(torch.nn.Module):
    """A component as ComfyUI's manager wants it: with attributes that it may set, `device` among them."""

    def __init__(self, component: torch.nn.Module, device: torch.device):
        super().__init__()
        self.component = component
        self.device = device


class WholePatcher(ModelPatcher):
    """Is on the device whole or not at all: diffusers' layers cannot compute from another device's weights."""

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        if self.model.model_loaded_weight_memory:
            return 0
        try:
            self.model.to(device_to)
        except BaseException:  # out of memory halfway: the manager does not know this model yet, and could not free it
            self.model.to(self.offload_device)
            raise
        self.model.device = device_to
        self.model.model_loaded_weight_memory = self.model_size()
        return self.model_size()

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        return 0  # then the manager asks for all of it


class ManagedResidency:
    """The engine's components in ComfyUI's hands: it makes room for them, and takes it back."""

    def __init__(self, components: Components):
        self.patchers: dict[str, ModelPatcher] = {}
        for name, component in components.modules.items():
            self.patchers[name] = WholePatcher(
                Managed(component, torch.device("cpu")),
                load_device=management.get_torch_device(),
                offload_device=torch.device("cpu"),
            )

    def need(self, component: str, pixels: int = 0) -> None:
        patcher = self.patchers[component]
        precision = patcher.model.component.dtype.itemsize
        work = WORK.get(component, 0) * precision * pixels
        management.load_models_gpu([patcher], memory_required=work)

    def reach(self, component: str, module: str) -> None:
        self.need(component)

    def need_all(self, pixels: int = 0) -> None:
        patchers = list(self.patchers.values())
        precision = max(patcher.model.component.dtype.itemsize for patcher in patchers)
        work = max(WORK.values()) * precision * pixels
        management.load_models_gpu(patchers, memory_required=work)


class LoadedModel(NamedTuple):
    """What travels along a CANDELA_MODEL link.

    A tuple that shows its ModelPatchers: under memory pressure ComfyUI's cache looks inside tuples for them
    and lets old ones go first. (Older cores ask `get_ram_usage`.)"""

    engine: Engine
    patchers: tuple[ModelPatcher, ...]
    loras: tuple[Lora, ...] = ()  # of this link: the engine is shared, and whoever runs it puts them on first

    def get_ram_usage(self) -> int:
        return sum(patcher.model_size() for patcher in self.patchers)


@contextlib.contextmanager
def unloading_when_full() -> Iterator[None]:
    """Out of memory: everything is unloaded, as ComfyUI does for its own nodes, so that the next try has room."""
    try:
        yield
    except OutOfMemory:
        management.unload_all_models()
        raise


def _make_room(size: int) -> None:
    """Asks cores that can (from 0.19 on) to drop old outputs, models among them, before `size` bytes more are read into
    main memory."""
    try:
        from comfy import memory_management
    except ImportError:  # before 0.12
        return
    if hasattr(memory_management, "extra_ram_release"):
        memory_management.extra_ram_release(size + memory_management.RAM_CACHE_HEADROOM)


def _give_back_later() -> None:
    """Once an engine is gone, and a moment later its weights, returns their pages to the system: glibc keeps freed
    blocks of up to 32 MB in its heap (0.9 GB of a 0.9 GB model stayed after Free memory). A compiled block refers to
    itself, so it is gone when Python has looked for such circles."""
    timer = threading.Timer(0.3, _trim)
    timer.daemon = True
    timer.start()


def _trim() -> None:
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another libc
            ctypes.CDLL(None).malloc_trim(0)


# ComfyUI's cache of node outputs holds the models and decides how long; this only finds those alive.
_alive: weakref.WeakValueDictionary[tuple[str, torch.dtype, str], Engine] = weakref.WeakValueDictionary()


def load(name: str, precision: str, fast: str = "off") -> LoadedModel:
    """The model `name`, loaded unless it is already. `precision` is float32, bfloat16, float16 or auto; `fast` is off,
    auto, int8 or fp8.

    Raises:
        CheckpointError: it is not here, or its files cannot be used.
        InvalidRequest: there is no such fast mode for this model and GPU.
    """
    device = str(management.get_torch_device())
    dtype = pick_dtype(None if precision == "auto" else precision, torch.device(device))
    key = (names.fingerprint(name), dtype, fast)
    engine = _alive.get(key)
    if engine is None:
        began = time.perf_counter()
        _make_room(names.checkpoint(name).bytes)
        engine = Engine.load(
            names.location(name),
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            fast=fast != "off" and fast,
            residency=ManagedResidency,
        )
        _alive[key] = engine
        weakref.finalize(engine, _give_back_later).atexit = False
        log.info("[Candela] loaded %s in %.2f s", name, time.perf_counter() - began)
    residency = engine.residency
    assert isinstance(residency, ManagedResidency)
    return LoadedModel(engine, tuple(residency.patchers.values()))
