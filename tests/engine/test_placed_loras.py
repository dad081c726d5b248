"""LoRAs on a model whose weights come and go: the same pictures as where all of them stay."""

from __future__ import annotations

import numpy as np
import pytest

from candela import Engine, Lora, Request
from tests import loras
from tests.loras import FORMATS

STAR = Request("a red star", width=64, height=64, steps=2, guidance=0.0)


@pytest.mark.parametrize("label", ["transformer.*.lora_A/B (peft)", "DoRA, transformer.*.lora_magnitude_vector"])
@pytest.mark.parametrize("placement", ["released", "streamed"])
def test_lora_on_every_placement(tiny_models, tmp_path, placement, label):
    resident = Engine.load(tiny_models["z-image"], placement="resident", device="cpu")
    path = tmp_path / "lora.safetensors"
    loras.write(path, FORMATS[label], resident.components.transformer)
    bare = resident.generate(STAR).images[0]
    placed = Engine.load(tiny_models["z-image"], placement=placement, device="cpu")
    pictures = []
    for engine in (resident, placed):
        engine.set_loras([Lora(path, 1.0)])
        pictures.append(np.asarray(engine.generate(STAR).images[0], dtype=int))
    assert np.abs(pictures[0] - np.asarray(bare, dtype=int)).max() > 5
    assert np.array_equal(*pictures)
