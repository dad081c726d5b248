"""What another Python finds when it really imports: torch, and the node pack as ComfyUI loads it. Nothing is written
but below a temporary folder."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candela.install.environment import quiet_environ

SECONDS = 180

TORCH = """
import json, sys
import torch
cuda = torch.cuda.is_available()
mps = torch.backends.mps.is_available()
found = {"version": torch.__version__, "built_for": torch.version.cuda or torch.version.hip or "",
         "device": torch.cuda.get_device_name() if cuda else "Apple GPU" if mps else ""}
json.dump(found, open(sys.argv[1], "w"))
"""

# As nodes.load_custom_node does it. The base directory keeps folder_paths from creating folders in the tree.
LOAD = """
import asyncio, importlib.util, json, os, sys
answer, core, pack, *options = sys.argv[1:]
sys.argv = ["main.py", *options]
sys.path.insert(0, core)
import comfy.options
comfy.options.enable_args_parsing()
name = pack.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(pack, "__init__.py"))
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def nodes():
    extension = await module.comfy_entrypoint()
    return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]
json.dump({"nodes": asyncio.run(nodes())}, open(answer, "w"))
"""


@dataclass(frozen=True)
class Torch:
    """torch in some Python. `built_for`: CUDA's or ROCm's version, "" for none; `device`: the GPU that it can use."""

    version: str = ""
    built_for: str = ""
    device: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Loaded:
    """The pack in ComfyUI's Python: the ids of its nodes, or what went wrong."""

    nodes: tuple[str, ...] = ()
    problem: str = ""


def probe_torch(python: Path) -> Torch:
    found, problem = _run(python, TORCH)
    return Torch(**found) if found else Torch(problem=problem)


def load_pack(python: Path, core: Path, pack: Path, on_cpu: bool) -> Loaded:
    with tempfile.TemporaryDirectory() as base:
        options = ["--base-directory", base, *(["--cpu"] if on_cpu else [])]
        found, problem = _run(python, LOAD, str(core), str(pack), *options)
    return Loaded(tuple(found["nodes"])) if found else Loaded(problem=problem)


def _run(python: Path, script: str, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """-> its answer, or None and the last line that it said."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        try:
            run = subprocess.run(
                [str(python), "-c", script, str(answer), *arguments],
                cwd=folder, env=quiet_environ(), capture_output=True, text=True, errors="replace", timeout=SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, str(error)
        if answer.is_file():
            return json.loads(answer.read_text()), ""
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        return None, lines[-1][:300] if lines else f"it ended with code {run.returncode}, and said nothing"
