"""The door to ComfyUI: custom nodes around the engine.

ComfyUI imports this package when it starts, so nothing heavy may be imported here: diffusers
and the engine come with the first node that runs.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from candela.errors import InstallError

WEB_DIRECTORY = str(Path(__file__).parent / "web")  # the nodes' help pages
OLDEST_TORCH = "2.8"  # as pyproject.toml has it; pip never sees it, for torch is ComfyUI's own

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """What ComfyUI calls to learn the nodes.

    Raises:
        InstallError: its torch is too old.
    """
    found = importlib.metadata.version("torch")
    if tuple(map(int, found.split(".")[:2])) < tuple(map(int, OLDEST_TORCH.split("."))):
        raise InstallError(
            f"Candela's nodes need torch {OLDEST_TORCH} or newer; ComfyUI's Python ({sys.executable}) has {found}. "
            "Update ComfyUI, and its torch with it: Candela never changes that"
        )
    from comfy_api.latest import ComfyExtension

    from candela.comfyui import nodes

    class Candela(ComfyExtension):
        async def get_node_list(self):
            return nodes.NODES

    return Candela()
