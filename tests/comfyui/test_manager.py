"""The components in the hands of ComfyUI's own manager, without a server and without a second device."""

from __future__ import annotations

import subprocess

from tests.comfyui.conftest import REPOSITORY

SCRIPT = """
import sys
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [CORE, SOURCE]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management as management
import torch
from candela.comfyui.models import Managed, WholePatcher

here, card = torch.device("cpu"), torch.device("cpu", 0)  # equal to torch, two places to the manager


class Layer(torch.nn.Linear):
    fails = False

    def _apply(self, *args, **kwargs):
        if self.fails:
            Layer.fails = False
            raise torch.OutOfMemoryError("no room")
        return super()._apply(*args, **kwargs)


model = Managed(torch.nn.Sequential(torch.nn.Linear(64, 64), Layer(64, 64)), here)
patcher = WholePatcher(model, load_device=card, offload_device=here)
loaded = management.LoadedModel(patcher)
loaded.model_load(lowvram_model_memory=1)
assert patcher.loaded_size() == patcher.model_size() > 0, "hardly any room: whole all the same"
assert model.device == card
assert loaded.model_unload(memory_to_free=10) is True, "asked for ten bytes, it leaves whole"
assert patcher.loaded_size() == 0 and model.device == here

Layer.fails = True
loaded = management.LoadedModel(patcher)
try:
    loaded.model_load()
except torch.OutOfMemoryError:
    pass
else:
    raise AssertionError("the failure was swallowed")
assert patcher.loaded_size() == 0 and model.device == here, "what failed halfway was taken back"
print("held")
"""


def test_a_component_is_on_the_device_whole_or_not_at_all(core):
    script = f"CORE, SOURCE = {str(core.path)!r}, {str(REPOSITORY / 'src')!r}\n{SCRIPT}"
    run = subprocess.run([core.python, "-c", script], capture_output=True, text=True, cwd=core.path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().endswith("held")
