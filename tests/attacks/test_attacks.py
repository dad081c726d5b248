"""Every hostile file ends in our error, soon and small. `files.py` says what each tries."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.files import ATTACKS, OK, Attack, model_of, written

SECONDS = 2.0  # of processor time: other processes are not the file's fault, nor is a slow machine (see `pace`)
BYTES = 300_000_000  # of a whole process that identifies; beyond what its modules take of one that loads
PATIENCE = 12.0  # seconds by the clock, until it counts as a hang
STARTING = 180.0  # the same for a process's first answer: on a busy machine, a CUDA build of torch takes long to import


class Worker:
    """A process that runs one file after another; a new one after each that hangs or dies."""

    def __init__(self, what: str):
        self.what = what
        self.process: subprocess.Popen[str] | None = None
        self.patience = STARTING

    def start(self, argument: str) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.attacks.worker", self.what],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        assert self.process.stdin
        self.process.stdin.write(json.dumps(argument) + "\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        assert self.process and self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], self.patience)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
            pytest.fail(f"it {'dies of' if ready else 'hangs at'} {self.what}")
        self.patience = PATIENCE
        return json.loads(line)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process, self.patience = None, STARTING


@pytest.fixture(scope="module")
def workers():
    made = {what: Worker(what) for what in ("identify", "load")}
    yield made
    for worker in made.values():
        worker.close()


@pytest.fixture
def place(tmp_path):
    """A folder that is gone with the test: some of these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_it_ends_in_our_error(attack: Attack, workers, place):
    path = written(attack, place)
    name = str(path).encode("ascii", "backslashreplace").decode()
    workers["identify"].start(str(path))
    workers["load"].start(model_of(attack, path))
    identified, loaded = workers["identify"].result(), workers["load"].result()
    assert "crash" not in identified, identified["crash"]
    assert identified["seconds"] < SECONDS and identified["peak"] < BYTES, identified
    assert printable(identified["out"]) and printable(identified["err"]), identified
    assert len(identified["out"] + identified["err"]) < 5000, "a few lines, whatever the file says"
    if attack.identified == OK:
        assert identified["code"] in (0, 2) and name in identified["out"] and not identified["err"], identified
    else:
        assert identified["code"] == 2 and name in identified["err"] and not identified["out"], identified

    assert "crash" not in loaded, loaded["crash"]
    assert loaded["error"] in attack.loaded.split("/"), loaded
    assert loaded["seconds"] < SECONDS and loaded["growth"] < BYTES, loaded
    assert "RAN" not in loaded["err"] + loaded["out"] and not list(place.rglob("ran"))
    assert loaded["error"] == OK or (len(loaded["message"]) < 5000 and str(place) in loaded["message"]), loaded
