"""CUDA without a card: the engine's own code on tensors that say `cuda` and hold no values (torch's FakeTensorMode).

Operations on them propagate shape, precision and device, and raise where two devices meet. What a card would take part
in is not there: values, time, the order of streams. What needs values stays outside: reading files, the schedule of
timesteps, the check for NaN. `Watch` looks at every operation that the engine gives to torch.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode, is_fake
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import candela
from candela.checkpoints import loading
from candela.engine import adapters, attempts, sampling
from candela.engine.fast import weights
from candela.engine.skeletons import blocks_of
from candela.families import FAMILIES

CARD = torch.device("cuda", 0)
CUDA, LAZY = 1, 17  # c10::DeviceType
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_, aten.copy)
VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)  # operations whose result asks for a value
HOMES = [Path(package.__file__).parent for package in (candela, diffusers, transformers)]
ON_PURPOSE = {  # what a library does in float32 for the sake of the picture, and rounds before it goes on
    # RMSNorm: x / root; Lumina-Next's embedding of the whole text: its sum over the mask.
    "precisions": ("diffusers/models/normalization.py", "diffusers/models/embeddings.py"),
}


@functools.cache
def missing() -> str:
    """Why there are no fake CUDA tensors here; empty where there are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with guard(), mode:
            torch.empty(2, dtype=torch.int64, device=CARD)[:1] - 1
            torch.ones(2).to(CARD)
    except (RuntimeError, OSError, ValueError, StopIteration) as error:
        return f"torch {torch.__version__} has no fake CUDA tensors: {str(error).splitlines()[0]}"
    return ""


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """A CPU build of torch gets the stand-in for CUDA's devices that a CUDA build takes where there is no card.

    torch puts it there itself (`_ensureCUDADeviceGuardSet`), but only in the place of one that counts no devices. That
    of the lazy device counts none either, so it is lent for a moment."""
    if torch.backends.cuda.is_built():
        yield
        return
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("*c10.*"))))
    registry = (ctypes.c_void_p * (LAZY + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = registry[CUDA]
    registry[CUDA] = before or registry[LAZY]
    torch._C._ensureCUDADeviceGuardSet()
    try:
        yield
    finally:
        registry[CUDA] = before


def outside(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` on real tensors."""

    @functools.wraps(work)
    def real(*arguments: Any, **named: Any) -> Any:
        with _disable_current_modes():
            return work(*arguments, **named)

    return real


@contextlib.contextmanager
def fake_card(capability: tuple[int, int] = (9, 0)) -> Iterator[FakeTensorMode]:
    """`Engine.load(..., device=CARD)` and all that the engine does work within, but for what makes pictures."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with guard(), pytest.MonkeyPatch.context() as patch:
        item, read = torch.Tensor.item, outside(loading.load_component)

        def load_component(part: Any, name: str, *, device: torch.device, dtype: torch.dtype) -> Any:
            component = read(part, name, device=torch.device("cpu"), dtype=dtype)
            if isinstance(component, torch.nn.Module):
                convert(component, functools.partial(empty_like, device=device))
            return component

        for module in (loading, attempts, weights):
            patch.setattr(module, "load_component", load_component)
        patch.setattr(adapters, "read_tensors", outside(adapters.read_tensors))
        patch.setattr(torch.Tensor, "item", lambda tensor: (item if is_fake(tensor) else outside(item))(tensor))
        patch.setattr(copy, "deepcopy", outside(copy.deepcopy))
        for family in FAMILIES:
            patch.setattr(type(family), "set_timesteps", _moved(type(family).set_timesteps))
        patch.setattr(sampling, "check_finite", lambda *_: None)
        patch.setattr(torch.nn.Module, "_apply", convert)  # torch's own exchanges fake tensors and finds them in use
        patch.setattr(torch, "get_device_module", lambda device: STREAMS)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        with mode:
            yield mode


def _moved(set_timesteps: Callable[..., None]) -> Callable[..., None]:
    def on_card(self: Any, scheduler: Any, steps: int, latents: torch.Tensor) -> None:
        outside(set_timesteps)(self, scheduler, steps, torch.empty(latents.shape, device="meta"))
        for name in ("timesteps", "sigmas"):
            setattr(scheduler, name, getattr(scheduler, name).to(latents.device))

    return on_card


def empty_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def convert(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = torch.nn.Parameter(change(parameter), requires_grad=False)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = change(buffer)
    return module


class Event:
    """torch.cuda's, of a moment that never is."""

    def __init__(self, enable_timing: bool = False):
        """Both kinds are alike here."""

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 1.0


class Stream:
    """torch.cuda's, on which nothing runs."""

    def __init__(self, device: torch.device):
        """All are alike here."""

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def record_event(self) -> Event:
        return Event()


def stream(chosen: Stream) -> Any:
    return contextlib.nullcontext()


STREAMS = SimpleNamespace(Stream=Stream, Event=Event, current_stream=Stream, stream=stream)  # as in torch.cuda


class Watch(TorchDispatchMode):
    """Notes every operation that breaks a rule:

    devices: tensors of two devices meet, but to be copied.
    precisions: two floating point precisions meet, so that one is silently converted to the other. Tensors without
        axes take the other's and are none.
    product: within the loop, a matrix product or attention in another precision than the model's.
    host: within the loop, the device is asked for a value, or a copy between it and main memory makes one wait.
    block: what goes into a block of the transformer, or comes out, is not in the model's precision.
    """

    def __init__(self, engine: Any):
        super().__init__()
        self.dtype = engine.dtype
        self.found: dict[str, int] = {}
        self.operations = 0
        self.looping = False
        self._patch = pytest.MonkeyPatch()
        self._fused = _Fused(self)
        self._hooks: list[Any] = []
        self._blocks = blocks_of(engine.components.transformer)

    def __enter__(self) -> Watch:
        def denoise(*arguments: Any, **named: Any) -> torch.Tensor:
            self.looping = True
            try:
                return loop(*arguments, **named)
            finally:
                self.looping = False

        loop = sampling.denoise
        self._patch.setattr(sampling, "denoise", denoise)
        for block in self._blocks:
            self._hooks.append(block.register_forward_hook(self._block, with_kwargs=True))
        super().__enter__()
        self._fused.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._fused.__exit__(*error)
        super().__exit__(*error)
        self._patch.undo()
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        given, kind = _tensors((args, kwargs)), func._overloadpacket
        if kind in COPIES:
            self._copy(func, given, args, kwargs)
        else:
            self.check(func, given, product=kind in flop_registry)
        if self.looping and any(tag in func.tags for tag in VALUES):
            self._note("host", func, given)
        return func(*args, **kwargs)

    def check(self, func: Any, given: list[torch.Tensor], product: bool) -> None:
        if len({tensor.device.type for tensor in given}) > 1:
            self._note("devices", func, given)
        floats = {tensor.dtype for tensor in given if tensor.ndim and tensor.dtype.is_floating_point}
        if len(floats) > 1:
            self._note("precisions", func, given)
        if product and self.looping and any(dtype.itemsize > 1 and dtype != self.dtype for dtype in floats):
            self._note("product", func, given)

    def _copy(self, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> None:
        devices = {tensor.device.type for tensor in given} | {kwargs["device"].type if kwargs.get("device") else ""}
        beside = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
        if self.looping and len(devices - {""}) > 1 and not beside:
            self._note("host", func, given)

    def _block(self, block: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = _tensors((args, kwargs, output))
        if any(t.ndim > 1 and t.dtype.is_floating_point and t.dtype != self.dtype for t in tensors):
            self._note("block", type(block).__name__, tensors)

    def _note(self, rule: str, func: Any, given: list[torch.Tensor]) -> None:
        if (where := _where()).startswith(ON_PURPOSE.get(rule, ("-",))):
            return
        shown = ", ".join(f"{str(t.dtype)[6:]} {list(t.shape)} on {t.device.type}" for t in given)
        line = f"{rule}: {func}({shown}) in {where}"
        self.found[line] = self.found.get(line, 0) + 1


class _Fused(TorchFunctionMode):
    """What is one kernel on a card, and many operations where nothing can tell: seen as one."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (functional.scaled_dot_product_attention, functional.rms_norm):
            return func(*args, **kwargs)
        self.watch.check(func.__name__, _tensors((args, kwargs)), product=func is not functional.rms_norm)
        first = args[0]
        if func is functional.rms_norm:
            return torch.empty_like(first)
        return first.new_empty(*first.shape[:-1], args[2].shape[-1])


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _where() -> str:
    """The innermost line that is ours or a library's for models."""
    frame = sys._getframe(1)
    while frame:
        file = Path(frame.f_code.co_filename)
        if home := next((home for home in HOMES if file.is_relative_to(home)), None):
            return f"{file.relative_to(home.parent).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
