"""A program that uses the engine finds its own settings as they were."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import ctypes, gc, logging, os, sys, warnings
import accelerate, diffusers, transformers, torch, torch._dynamo
from torch.fx.experimental import _config as symbols
from candela import Engine, Request
from candela.engine.fast import compile_blocks
from candela.engine.heap import own_process, return_at_once
from candela.engine.ladder import Placement

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keep")]

libc.mallinfo2.restype = Mallinfo

def malloc_is_itself():
    "Left to itself it takes blocks of 30 MB from its heap once one of 31 MB was freed."
    libc.free(libc.malloc(31 << 20))
    before = libc.mallinfo2().hblks
    blocks = [libc.malloc(30 << 20) for _ in range(9)]  # more than the heap may have to spare
    mapped = libc.mallinfo2().hblks - before
    for block in blocks:
        libc.free(block)
    return not mapped

def settings():
    return {
        "environment": {k: v for k, v in os.environ.items() if "TORCHINDUCTOR" not in k and "TRITON" not in k},
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "warnings": list(warnings.filters),
        "logging": {name: logging.getLogger(name).level for name in ("", "torch", "diffusers", "transformers")},
        "dynamo": torch._dynamo.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "symbols": symbols.get_config_copy(),
        "modules": torch.nn.Module.register_parameter,
        "products": (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark),
        "garbage": (gc.get_threshold(), gc.isenabled()),
        "malloc": malloc_is_itself(),
    }

import torch._inductor.config
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))  # what torch imports for it brings warnings' filters
request = Request("a red star", width=64, height=64, steps=1)
before = settings()
assert before["malloc"]
exact = Engine.load("demo", device="cpu", dtype="bfloat16")
exact.generate(request)
exact.residency.step_down("denoise")
fast = Engine.load("demo", device="cpu", fast="int8")
compile_blocks(fast.components.transformer, backend="eager")
fast.generate(request)
Engine.load("demo", device="cpu", placement="streamed").generate(request)
after = settings()
assert after == before, [(name, before[name], after[name]) for name in before if before[name] != after[name]]
own_process()
return_at_once()
assert not malloc_is_itself()
print("as they were")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is asked")
def test_the_settings_of_the_process_are_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path))
    run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "as they were" in run.stdout
