"""Engines of one process share its memory: what happens when it is too small for two at work.

Every stage runs as one of several. One for which even the last rung was too much waits, holding none of its weights,
until no other stage runs, sends away what idle engines hold, and runs alone. Nobody waits while holding what another
waits for: stages end by themselves, and who waits to be alone is not counted as running. (But for a step callback that
calls another engine: it may wait for one that waits for its own stage.)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Sharer(Protocol):
    def leave(self) -> None: ...


class Room:
    """The memory of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._waiting = 0  # to be alone
        self._alone = False
        self._inside = threading.local()  # depth of stages in this thread
        self._sharers: weakref.WeakSet[Sharer] = weakref.WeakSet()

    def join(self, sharer: Sharer) -> None:
        with self._changed:
            self._sharers.add(sharer)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """A stage among others; it begins after those that wait to be alone. A stage within a stage of the same thread
        just runs."""
        depth = getattr(self._inside, "depth", 0)
        if not depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._alone and not self._waiting)
                self._running += 1
        self._inside.depth = depth + 1
        try:
            yield
        finally:
            self._inside.depth = depth
            if not depth:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within `shared`: waits until no other stage runs, and keeps others from beginning; what their engines hold
        is put away."""
        with self._changed:
            self._running -= 1
            self._waiting += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not self._alone and not self._running)
            except BaseException:  # Ctrl-C: it counts as running again, until `shared` ends
                self._running += 1
                raise
            finally:
                self._waiting -= 1
                self._changed.notify_all()
            self._alone = True
            others = list(self._sharers)
        try:
            for sharer in others:
                sharer.leave()
            yield
        finally:
            with self._changed:
                self._alone = False
                self._running += 1
                self._changed.notify_all()

    def crowded(self, sharer: Sharer) -> bool:
        """Is there another engine at all?"""
        with self._changed:
            return any(other is not sharer for other in self._sharers)


ROOM = Room()
