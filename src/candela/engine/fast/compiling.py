"""Regional compilation: each repeated block of a transformer, with what was compiled kept for the next run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch.utils import _config_module

from candela.checkpoints.exhausted import causes, ran_out
from candela.engine.fast.keeping import folder
from candela.errors import CandelaWarning

CACHE = "TORCHINDUCTOR_CACHE_DIR"
TORCHS_OWN = os.path.join(tempfile.gettempdir(), "torchinductor_")  # and the user's name: gone with the next start
# Graphs that an engine has at most: up to seven (alone or in a batch, with a mask or without, refiner or layer), and as
# many again for each set of modules that a LoRA changes.
GRAPHS = 64
# Each thread has settings of its own since torch 2.13. Before, one that leaves them would take them from another, whose
# graphs then did not notice LoRAs: so compiled blocks run one at a time there.
ALONE: AbstractContextManager[Any] = nullcontext() if hasattr(_config_module, "ContextVar") else threading.RLock()


def can_compile(device: torch.device) -> bool:
    """Whether Triton is here for `device`, and the C compiler that it starts its kernels with."""
    from torch.utils._triton import has_triton

    compilers = (os.environ.get("CC"), "gcc", "clang", "cc", "cl")
    return device.type == "cuda" and has_triton() and any(name and shutil.which(name) for name in compilers)


def inductor(graph: Any, inputs: Any) -> Any:
    """torch's own compiler. What it makes is kept where TORCHINDUCTOR_CACHE_DIR says, by default in `compiled` beside
    the 8-bit weights; the variable is as it was afterwards. (Dynamo lets one thread at a time compile.)"""
    from torch._dynamo import lookup_backend

    before = os.environ.get(CACHE)
    if os.path.abspath(before or TORCHS_OWN).startswith(TORCHS_OWN):  # torch sets it itself
        os.environ[CACHE] = str(folder("compiled"))
    try:
        return lookup_backend("inductor")(graph, inputs)
    finally:
        os.environ.pop(CACHE, None)
        if before is not None:
            os.environ[CACHE] = before


def compile_blocks(transformer: torch.nn.Module, backend: Callable[[Any, Any], Any] | str = inductor) -> None:
    """Compiles every block when it first runs, once for all sizes of pictures: the members of the transformer's own
    lists (layers, refiners), which are alike, so one compilation serves all of a list. What `Family.prepare` put into
    them is compiled; a placement's hooks on the blocks stay outside."""
    compiler = _Compiler(backend)
    for child in transformer.children():
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                block.forward = types.MethodType(compiler.compiled(type(block).forward), block)


class _Compiler:
    """Of one engine: it has functions of its own, as torch keeps all that was ever compiled of a function with that
    function, up to a limit, whoever it was compiled for."""

    def __init__(self, backend: Callable[[Any, Any], Any] | str):
        self.backend = backend
        self.failed = False
        self._functions: dict[Any, Callable[..., Any]] = {}

    def compiled(self, function: Any) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            if self.failed:
                return function(*arguments, **named)
            try:
                with _settings():
                    return self._run(function, *arguments, **named)
            except Exception as error:
                if ran_out(error):
                    raise
                reason = _reason(error)[:300]  # not the error itself, whose frames hold tensors
            result = function(*arguments, **named)  # whatever is wrong with the block itself is raised here
            self.failed = True
            _say(reason)
            return result

        return forward

    def _run(self, function: Any, *arguments: Any, **named: Any) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit

        if function not in self._functions:
            self._functions[function] = self._fresh(function)
        try:
            return self._functions[function](*arguments, **named)
        except FailOnRecompileLimitHit:  # what was compiled goes, with the function that has it
            self._functions[function] = self._fresh(function)
        return self._functions[function](*arguments, **named)

    def _fresh(self, function: Any) -> Callable[..., Any]:
        own = types.FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__,
            function.__closure__,
        )  # fmt: skip
        own.__kwdefaults__ = function.__kwdefaults__
        compiled: Callable[..., Any] = torch.compile(own, backend=self.backend, dynamic=True)
        return compiled


@contextmanager
def _settings() -> Iterator[None]:
    """Dynamo's, for this thread and until the block has run: other programs in this process have their own. (Before
    torch 2.13 they see these meanwhile.)"""
    import torch._dynamo
    from torch.fx.experimental import _config as symbols

    with ALONE, ExitStack() as stack:
        stack.enter_context(
            torch._dynamo.config.patch(
                # LoRAs come and go as hooks; without its guards on them, compiled code would not notice.
                skip_nnmodule_hook_guards=False,
                recompile_limit=GRAPHS,
                fail_on_recompile_limit_hit=True,
                suppress_errors=False,
            )
        )
        # Sizes that agree by chance, 64 tokens and 64 pairs of a head's values, would be compiled as one and the same.
        stack.enter_context(cast("Any", symbols).patch(use_duck_shape=False))
        yield


def _say(reason: str) -> None:
    warnings.warn(
        f"torch.compile failed ({reason}): this engine goes on without it, slower, with the same "
        "picture. Most often a C compiler or Python's headers are missing: install gcc and python3-dev (python3-devel "
        "on Fedora), and load the model again",
        CandelaWarning,
        stacklevel=3,
    )


def _reason(error: BaseException) -> str:
    *_, first = causes(error)
    text = str(first)
    if isinstance(first, subprocess.CalledProcessError):  # a compiler, which may have spoken to the terminal instead
        text = os.fsdecode(first.stdout or b"") or f"exit status {first.returncode} of {first.cmd}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(first).__name__}: {next((line for line in lines if 'error:' in line), lines[0] if lines else '')}"
