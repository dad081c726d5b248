"""Runs hostile files in a process that may die of them: a line with a model on stdin, a line with what came of it on
stdout. `identify` takes paths and runs the shell's command; `load` takes what `--model` takes, loads
it and tokenizes a prompt."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def memory(field: str) -> int:
    """VmRSS or VmHWM (its peak since `reset`), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def reset() -> int:
    """Forgets the peak; -> bytes in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


PACE = 0.2  # seconds that `pace` takes on the machine on which the limits of test_attacks were set


def pace() -> float:
    """How slow the machine is at this moment: what it takes for work of the same kind as reading a header, over PACE.
    1 on one that is as fast or faster, so that the limits never become wider than they need be."""
    text = json.dumps({f"layers.{k}.weight": {"shape": [k, 4], "data_offsets": [k, k + 4]} for k in range(100_000)})
    started = time.process_time()
    names = json.loads(text)
    _ = [name for name in names if name.removeprefix("layers.").endswith(".bias")]
    return max(1.0, (time.process_time() - started) / PACE)


def identifier() -> Callable[[str], dict[str, Any]]:
    import typer

    from candela.cli.main import app

    def run(path: str) -> dict[str, Any]:
        command = typer.main.get_command(app)
        code = command.main(["identify", path], standalone_mode=False)
        assert not {"torch", "numpy", "diffusers", "transformers"} & sys.modules.keys(), "identify imports no torch"
        return {"code": code}

    return run


def loader() -> Callable[[str], dict[str, Any]]:
    import torch

    from candela.checkpoints import load_components, read_checkpoint
    from candela.errors import CandelaError
    from candela.families import family_of

    torch.set_num_threads(1)

    def run(model: str) -> dict[str, Any]:
        try:
            checkpoint = read_checkpoint(model)
            family = family_of(checkpoint)
            family.defaults(checkpoint)
            components = load_components(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
            family.prepare(components)
            family.tokenize(components, "a large red star on a blue background")
        except CandelaError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": "OK"}

    run("demo")  # whatever is imported late, is not the fault of a file
    return run


def main(what: str) -> None:
    run = {"identify": identifier, "load": loader}[what]()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        before, started = reset(), time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                result = run(json.loads(line))
            except BaseException:
                result = {"crash": traceback.format_exc()[-3000:]}
        seconds, peak = time.process_time() - started, memory("VmHWM")
        seconds /= pace() if seconds > 1 else 1
        result |= {"out": out.getvalue()[:20_000], "err": err.getvalue()[:20_000]}
        result |= {"seconds": seconds, "peak": peak, "growth": peak - before}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
