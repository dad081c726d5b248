"""Engines that share a memory: who waits to be alone gets there, and an interrupted wait leaves nothing behind."""

from __future__ import annotations

import threading
import time

import pytest

from candela.engine.sharing import Room


def test_busy_others_do_not_keep_one_from_being_alone():
    """Two engines whose stages overlap all the time: without a queue, somebody would always be running."""
    room, done = Room(), threading.Event()

    def busy():
        while not done.is_set():
            with room.shared():
                time.sleep(0.02)

    others = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
    reached = threading.Event()

    def waiter():
        with room.shared(), room.alone():
            reached.set()

    for thread in others:
        thread.start()
        time.sleep(0.01)
    last = threading.Thread(target=waiter, daemon=True)
    last.start()
    got_there = reached.wait(30)
    done.set()
    for thread in [*others, last]:
        thread.join(30)
        assert not thread.is_alive()
    assert got_there


def test_an_interrupted_wait_leaves_the_count_right(monkeypatch):
    room = Room()
    with room.shared():

        def interrupted(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(room._changed, "wait_for", interrupted)
            with pytest.raises(KeyboardInterrupt):
                room.alone().__enter__()
    entered = threading.Event()

    def next_one():
        with room.shared(), room.alone():
            entered.set()

    thread = threading.Thread(target=next_one, daemon=True)
    thread.start()
    assert entered.wait(30)
    thread.join(30)
