"""Run with ComfyUI's Python: our reading of its quantised weights against its own. Prints what agreed, bit for bit."""

import comfy_kitchen as kitchen
import torch
from comfy_kitchen.tensor import TensorWiseINT8Layout

from candela.checkpoints.packed import BlockScaled, Scaled, untiled

generator = torch.Generator().manual_seed(3)


def agree(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours, theirs), f"{name}: {(ours - theirs).abs().max()}"


for shape in [(64, 64), (384, 256), (100, 48)]:
    weight = torch.randn(shape, generator=generator).bfloat16()
    scale = (weight.abs().max() / (448 * 6)).float()
    values, blocks = kitchen.quantize_nvfp4(weight, scale, pad_16x=True)
    rows, columns = values.shape[0], values.shape[1] * 2
    packed = BlockScaled((rows, columns), values, untiled(blocks.float(), rows, columns // 16), scale.reshape(1))
    agree("nvfp4", packed.dense(torch.float32), kitchen.dequantize_nvfp4(values, scale, blocks, torch.float32))
print("nvfp4")
weight = torch.randn((100, 96), generator=generator).bfloat16()
values, blocks = kitchen.quantize_mxfp8(weight, pad_32x=True)
rows, columns = values.shape
powers = torch.exp2(untiled(blocks.view(torch.uint8).float(), rows, columns // 32) - 127)
packed = BlockScaled((rows, columns), values, powers, torch.ones(1))
agree("mxfp8", packed.dense(torch.float32), kitchen.dequantize_mxfp8(values, blocks, torch.float32))
print("mxfp8")
for name, rotation in (("int8", 0), ("int8+rotation", 256)):
    weight = torch.randn((64, 512), generator=generator)
    values, parameters = TensorWiseINT8Layout.quantize(weight, per_channel=True, convrot=bool(rotation))
    packed = Scaled((64, 512), values, parameters.scale.reshape(-1, 1), rotation)
    agree(name, packed.dense(torch.float32), TensorWiseINT8Layout.dequantize(values, parameters))
    print(name)
