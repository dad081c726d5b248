"""Regional compilation: each repeated block of a transformer, with what was compiled kept for the next run."""

from __future__ import annotations

import os
import shutil
import tempfile

import torch

from candela.engine.fast.keeping import folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"
TORCHS_OWN = os.path.join(tempfile.gettempdir(), "torchinductor_")  # and the user's name: gone with the next start


def can_compile(device: torch.device) -> bool:
    """Whether Triton is here for `device`, and the C compiler that it starts its kernels with."""
    from torch.utils._triton import has_triton

    compilers = (os.environ.get("CC"), "gcc", "clang", "cc", "cl")
    return device.type == "cuda" and has_triton() and any(name and shutil.which(name) for name in compilers)


def compile_blocks(transformer: torch.nn.Module, backend: str = "inductor") -> None:
    """Compiles every block when it first runs, once for all sizes of pictures: the members of the transformer's own
    lists (layers, refiners), which are alike, so one compilation serves all of a list. What `Family.prepare` put into
    them is compiled; a placement's hooks on the blocks stay outside.

    Where compiled code is kept: TORCHINDUCTOR_CACHE_DIR, by default `compiled` beside the 8-bit weights.
    """
    if os.path.abspath(os.environ.get(CACHE, TORCHS_OWN)).startswith(TORCHS_OWN):  # torch sets it itself when imported
        os.environ[CACHE] = str(folder("compiled"))
    # LoRAs come and go as hooks; without its guards on them, compiled code would not notice.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for child in transformer.children():
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                block.forward = torch.compile(block.forward, backend=backend, dynamic=True)
