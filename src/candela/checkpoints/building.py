"""How a class is built from its configuration: in another precision, and with parameters that take no memory. Both are
for the thread that builds alone: what other threads make meanwhile is as ever, which torch.set_default_dtype and
accelerate's init_empty_weights, being the whole process's, would not leave so."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class default_dtype(TorchFunctionMode):
    """What a class computes when it is built (tables of positions) is in the precision of its weights, as the libraries
    have it, which set torch's default: the precision of new tensors, of Python's numbers, and of whole numbers that
    become fractions."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        default = torch.get_default_dtype()
        if not isinstance(result, torch.Tensor) or result.dtype != default or default == self.dtype:
            return result
        given = tree_leaves((args, kwargs))
        if any(_has_precision(value) for value in given) or func in CONVERSIONS:
            return result
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        if not tensors:
            return func(*args, **{**kwargs, "dtype": self.dtype}) if func in _factories() else result.to(self.dtype)
        if any(tensor.dtype == torch.bool for tensor in tensors):  # a condition
            return result.to(self.dtype)
        # torch takes whole numbers to the precision of the result first, and then computes.
        precise = [value.to(self.dtype) if isinstance(value, torch.Tensor) else value for value in args]
        return func(*precise, **kwargs)


CONVERSIONS = (torch.Tensor.float, torch.Tensor.type, torch.Tensor.to, torch.from_numpy)


def _has_precision(value: Any) -> bool:
    """Says itself which precision the result has."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, (torch.dtype, np.ndarray, np.generic))


@functools.cache
def _factories() -> frozenset[Any]:
    from torch.utils._device import _device_constructors

    return frozenset(_device_constructors())


class _Empty:
    """torch.nn.Module.register_parameter while anybody builds; it does what it did for everybody else."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.builders: list[int] = []  # threads
        self.original: Any = None

    def begin(self) -> None:
        module: Any = torch.nn.Module
        with self.lock:
            if not self.builders:
                self.original = original = module.register_parameter

                def register_parameter(owner: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
                    original(owner, name, parameter)
                    if parameter is not None and threading.get_ident() in self.builders:
                        empty = torch.nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
                        empty.__dict__.update(parameter.__dict__)
                        owner._parameters[name] = empty

                module.register_parameter = self.ours = register_parameter
            self.builders.append(threading.get_ident())

    def end(self) -> None:
        module: Any = torch.nn.Module
        with self.lock:
            self.builders.remove(threading.get_ident())
            if not self.builders and module.register_parameter is self.ours:
                module.register_parameter = self.original


_EMPTY = _Empty()


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that this thread builds have their parameters on the meta device; buffers are computed."""
    _EMPTY.begin()
    try:
        yield
    finally:
        _EMPTY.end()
