"""Many tensors of plain weight files at once, into their final device and precision."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candela.checkpoints.headers import StoredTensor
from candela.checkpoints.headers.header import open_regular
from candela.checkpoints.tensors import DTYPES
from candela.errors import DamagedFile

SLICE = 4 << 20  # bytes that are read and converted at a time: they stay in the processor's cache meanwhile
READERS = min(4, os.cpu_count() or 1)
PIECE = 16 << 20  # values that are converted at a time, out of a mapped file
FEW = 64 << 20  # bytes that one thread reads as quickly


@dataclass(frozen=True)
class Wanted:
    """A tensor in the file at `path`, and the precision it is wanted in."""

    path: Path
    stored: StoredTensor
    dtype: torch.dtype


@dataclass(frozen=True)
class _Slice:
    """The values begin..end of `wanted`, counted flat, on their way into `target`, flat."""

    wanted: Wanted
    begin: int
    end: int
    target: torch.Tensor


def read_tensors(wanted: Mapping[str, Wanted], device: torch.device) -> dict[str, torch.Tensor]:
    """-> the tensors by name, on `device`. On the CPU those that are stored as they are wanted stay in their file, and
    others are converted out of it, where that is safe (`mapping.py`); all else is read once, a slice at a time, by a
    few threads.

    Raises:
        DamagedFile: a file that ends before its tensors do, or that is none.
    """
    tensors = _mapped(wanted) if device.type == "cpu" else {}
    slices: list[_Slice] = []
    for name, one in wanted.items():
        if name not in tensors:
            tensors[name] = torch.empty(one.stored.shape, dtype=one.dtype, device=device)
            slices += _slices(one, tensors[name])
    slices.sort(key=lambda part: (str(part.wanted.path), part.wanted.stored.offset, part.begin))
    with _Reader(device) as reader:
        if sum(part.target[part.begin : part.end].nbytes for part in slices) <= FEW:
            for part in slices:  # a block of a streamed model, say: no threads, which may not be had with little memory
                reader.read(part)
            return tensors
        with ThreadPoolExecutor(READERS, thread_name_prefix="candela-reader") as pool:
            try:
                for _ in pool.map(reader.read, slices):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C
    return tensors


def _mapped(wanted: Mapping[str, Wanted]) -> dict[str, torch.Tensor]:
    """Those whose file can be mapped."""
    if sys.platform != "linux":  # others have no leases, and Windows no fcntl
        return {}
    from candela.checkpoints.mapping import mapped

    memory = {path: mapped(path) for path in {one.path for one in wanted.values()}}
    found = {}
    for name, one in sorted(wanted.items(), key=lambda item: (str(item[1].path), item[1].stored.offset)):
        data, stored, kind = memory[one.path], one.stored, DTYPES[one.stored.dtype]
        if data is not None and stored.offset % kind.itemsize == 0 and stored.bytes:
            if stored.offset + stored.bytes > len(data):
                raise DamagedFile(f"{one.path} ends inside the tensor {stored.name!r}. Download it again")
            values = data[stored.offset : stored.offset + stored.bytes].view(kind)
            found[name] = (values if kind == one.dtype else _converted(values, one.dtype)).reshape(stored.shape)
    return found


def _converted(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mapped values, flat, in `dtype`; the file's pages do not pile up behind."""
    from candela.checkpoints.mapping import let_go

    target = torch.empty(len(values), dtype=dtype)
    for source, place in zip(values.split(PIECE), target.split(PIECE)):
        place.copy_(source)  # by all of torch's threads, each in memory that is new: that is what costs
        let_go(source)
    return target


def _slices(wanted: Wanted, target: torch.Tensor) -> Iterator[_Slice]:
    flat, step = target.view(-1), SLICE // DTYPES[wanted.stored.dtype].itemsize
    for begin in range(0, len(flat), step):
        yield _Slice(wanted, begin, min(begin + step, len(flat)), flat)


class _Reader:
    """What each of its threads reads with: its own open files, and a buffer, locked into memory where a GPU fetches
    from it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.own = threading.local()
        self.files = ExitStack()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.files.close()

    def read(self, part: _Slice) -> None:
        stored = part.wanted.stored
        kind = DTYPES[stored.dtype]
        target = part.target[part.begin : part.end]
        direct = kind == part.wanted.dtype and self.device.type == "cpu"
        data = target.view(torch.uint8) if direct else self._buffer()[: len(target) * kind.itemsize]
        file = self._file(part.wanted.path)
        file.seek(stored.offset + part.begin * kind.itemsize)
        if file.readinto(data.numpy()) != len(data):
            raise DamagedFile(f"{part.wanted.path} ends inside the tensor {stored.name!r}. Download it again")
        if not direct:
            on_gpu = self.device.type == "cuda"
            # First to the device and then to its precision: a GPU converts faster than a CPU.
            target.copy_(data.view(kind).to(self.device, non_blocking=on_gpu))
            if on_gpu:  # the buffer is needed again; the other threads go on meanwhile
                torch.cuda.current_stream(self.device).synchronize()

    def _buffer(self) -> torch.Tensor:
        if not hasattr(self.own, "buffer"):
            self.own.buffer = torch.empty(SLICE, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return self.own.buffer

    def _file(self, path: Path) -> Any:
        own = self.own.__dict__.setdefault("files", {})
        if path not in own:
            own[path] = self.files.enter_context(open_regular(path))
        return own[path]
