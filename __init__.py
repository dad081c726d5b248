"""Makes a clone of this repository in ComfyUI's custom_nodes a pack of nodes.

Where a script lies beside a clone named `candela`, `import candela` finds this file first: then the package itself
takes its place.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

if __name__ == "candela":
    del sys.modules["candela"]
    sys.modules["candela"] = importlib.import_module("candela")
else:
    from candela.comfyui import WEB_DIRECTORY, comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
