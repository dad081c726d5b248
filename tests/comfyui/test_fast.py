"""Fast mode in ComfyUI: asked for on the Load node, and off where a workflow is older than it."""

from __future__ import annotations

import numpy as np

from candela.demo import check
from tests.comfyui import graphs
from tests.comfyui.test_workflows import rgb


def test_fast_is_another_engine_beside_the_exact_one(server):
    workflow = graphs.text_to_image(seed=7)
    pictures = {}
    for fast in (None, "off", "int8", "fp8"):  # None: a workflow from before there was such an input
        workflow["1"]["inputs"] |= {} if fast is None else {"fast": fast}
        run = server.run(workflow)
        assert run.ok, f"{fast}: {run.error}"
        pictures[fast] = run.pictures["5"][0]
    assert all(check(picture.convert("RGB"), graphs.STAR).ok for picture in pictures.values())
    exact, off, int8, fp8 = (rgb(picture).astype(float) for picture in pictures.values())
    assert np.array_equal(exact, off)
    assert all(0 < np.abs(exact - other).mean() < 5 for other in (int8, fp8))
    assert not np.array_equal(int8, fp8)


def test_a_machine_without_fast_mode_says_so(server):
    workflow = graphs.text_to_image(seed=7)
    workflow["1"]["inputs"]["fast"] = "auto"
    run = server.run(workflow)
    assert not run.ok
    assert "needs an NVIDIA GPU of compute capability 8.0 or more, and this is the cpu" in run.error
