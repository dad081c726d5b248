"""When steps are done, on a device that works off a queue while Python runs ahead of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

# Steps that are queued behind the one at work: the device does not wait for Python, and a stop only for these. (A
# preview does: it is computed after what is queued.)
AHEAD = 1


class _Clock:
    """A moment on the CPU, with the part of torch.cuda.Event that is used here."""

    def record(self, stream: None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: _Clock) -> float:
        """Milliseconds."""
        return (end.at - self.at) * 1000


class Pace:
    """The steps of one run. Each is told when it is done, with the seconds that it took on the device: on CUDA when the
    next one is queued, elsewhere at once."""

    def __init__(self, device: torch.device):
        self._event: Callable[[], Any] = _Clock
        self._stream: Any = None
        self._ahead = 0
        if device.type == "cuda":
            cuda = torch.get_device_module(device)
            self._event, self._ahead = lambda: cuda.Event(enable_timing=True), AHEAD
            self._stream = cuda.current_stream(device)  # an event's own choice is that of the current device
        self._queued: deque[tuple[Any, Any, Callable[[float], None]]] = deque()

    @property
    def queued(self) -> int:
        """Steps that nobody was told of yet."""
        return len(self._queued)

    def begin(self) -> None:
        """The step's work comes next."""
        self._began = self._mark()

    def end(self, tell: Callable[[float], None]) -> None:
        """All of its work is queued. Calls `tell` with the seconds of a step before it, or of this one, when that is
        done."""
        self._queued.append((self._began, self._mark(), tell))
        self._wait(self._ahead)

    def finish(self) -> None:
        """No step comes any more."""
        self._wait(0)

    def _mark(self) -> Any:
        event = self._event()
        event.record(self._stream)
        return event

    def _wait(self, ahead: int) -> None:
        while len(self._queued) > ahead:
            began, ended, tell = self._queued.popleft()
            ended.synchronize()
            tell(began.elapsed_time(ended) / 1000)
