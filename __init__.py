"""Makes a clone of this repository in ComfyUI's custom_nodes a pack of nodes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from candela.comfyui import WEB_DIRECTORY, comfy_entrypoint

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
