"""The door to ComfyUI: custom nodes around the engine.

ComfyUI imports this package when it starts, so nothing heavy may be imported here: diffusers
and the engine come with the first node that runs.
"""

from __future__ import annotations

from pathlib import Path

WEB_DIRECTORY = str(Path(__file__).parent / "web")  # the nodes' help pages

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """What ComfyUI calls to learn the nodes."""
    from comfy_api.latest import ComfyExtension

    from candela.comfyui import nodes

    class Candela(ComfyExtension):
        async def get_node_list(self):
            return nodes.NODES

    return Candela()
