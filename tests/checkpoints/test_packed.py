"""Packed weights against other implementations of the same formats."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from candela.checkpoints.headers.gguf import TYPES
from candela.checkpoints.packed import GGUFBlocks, QuantizedEmbedding, QuantizedLinear, Scaled, hadamard
from tests import layouts

KINDS = [kind.name for kind in gguf.quants._type_traits if kind.name != "BF16"]


def random_blocks(kind: str, rows: int, blocks: int) -> np.ndarray:
    """Bytes that are finite numbers: any bits will do but those that make a scale infinite or none."""
    quant = gguf.GGMLQuantizationType[kind]
    _, width = gguf.GGML_QUANT_SIZES[quant]
    rng = np.random.default_rng(7)
    found: list[np.ndarray] = []
    while len(found) < rows * blocks:
        tried = rng.integers(0, 256, (256, width), dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(tried, quant)
        found += [block for block, value in zip(tried, values) if np.isfinite(value).all()]
    return np.stack(found[: rows * blocks]).reshape(rows, -1)


def test_the_table_of_types_is_the_gguf_package_s():
    assert {(int(kind), kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == {
        (number, *entry) for number, entry in TYPES.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_that_the_gguf_package_knows(kind):
    data = random_blocks(kind, 3, 2)
    wanted = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    packed = GGUFBlocks(wanted.shape, torch.from_numpy(data), kind)
    got = packed.dense(torch.float32).numpy()
    assert np.allclose(got, wanted, rtol=1e-6, atol=0), "another order of the same products, at most"
    assert np.array_equal(packed.rows(slice(1, 3)).dense(torch.float32).numpy(), got[1:3])


def test_a_packed_layer_computes_what_its_dense_weight_does_and_keeps_its_size():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    data, kind = layouts.quantized(weight, "Q4_0")
    layer = QuantizedLinear(GGUFBlocks((64, 256), torch.from_numpy(data), kind.name), None, torch.float32)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    assert torch.equal(layer(x), x @ layer.weight.T)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    stored = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert stored == 64 * 256 // 32 * 18, "18 bytes for 32 weights"
    moved = layer.to("meta")
    assert moved.packed.blocks.device.type == "meta", "the packed bytes move with the layer"


def test_a_packed_embedding_makes_only_the_rows_dense_that_are_looked_up():
    table = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    data, kind = layouts.quantized(table, "Q8_0")
    embedding = QuantizedEmbedding(GGUFBlocks((100, 64), torch.from_numpy(data), kind.name), None, torch.float32)
    ids = torch.tensor([[3, 99], [0, 3]])
    assert torch.equal(embedding(ids), embedding.weight[ids])


def test_a_rotation_undoes_itself_and_only_powers_of_four_have_one():
    matrix = hadamard(64)
    assert torch.allclose(matrix @ matrix, torch.eye(64), atol=1e-6)
    assert torch.equal(matrix, layouts.regular_hadamard(64))
    with pytest.raises(ValueError, match="not 32"):
        hadamard(32)
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    turned = (weight @ matrix.T) * 100
    packed = Scaled((4, 64), turned, torch.full((4, 1), 0.01), rotation=64)
    assert torch.allclose(packed.dense(torch.float32), weight, atol=1e-5)
