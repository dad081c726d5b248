"""What a plan counts for CUDA on a machine without it, held against torch's own code and against arithmetic by hand."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from candela.checkpoints import read_checkpoint
from candela.checkpoints.building import default_dtype
from candela.engine import measuring
from candela.engine.kernels import laid_out, nbytes, workspace
from candela.engine.skeletons import Skeleton, skeleton
from candela.families import family_of
from tests.fake_cuda import CARD, convert, empty_like, guard, missing

aten = torch.ops.aten
NHWC = torch.channels_last


def test_flux_s_decoder_takes_what_its_widest_norm_and_convolution_take():
    """At 1024x1024 in bfloat16: 256 channels at full size come in, normed, and once more in NHWC; 128 come out."""
    mode, blocks = FakeTensorMode(), {"down_block_types": ["DownEncoderBlock2D"] * 4, "norm_num_groups": 32}
    with mode, torch.no_grad(), default_dtype(torch.bfloat16):
        vae = AutoencoderKL(
            latent_channels=16, block_out_channels=[128, 256, 512, 512], layers_per_block=2, use_quant_conv=False,
            up_block_types=["UpDecoderBlock2D"] * 4, use_post_quant_conv=False, **blocks,
        ).eval()  # fmt: skip
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight = torch.nn.Parameter(module.weight.to(memory_format=NHWC))
        tally = measuring.Tally(list(measuring.tensors(vae)), "cuda")
        with measuring.Fused(tally), tally:
            vae.decode(torch.empty(1, 16, 128, 128), return_dict=False)
    picture = 2 * 256 * 1024**2
    assert tally.peak == pytest.approx(3.5 * picture, rel=0.01)


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_torch_copies_a_picture_for_group_norm_on_cuda():
    """Its own code, run on fake CUDA tensors; should it learn NHWC one day, the rule goes."""
    with guard(), FakeTensorMode():
        for device in ("cpu", CARD):
            picture = torch.empty(1, 64, 32, 32, device=device).to(memory_format=NHWC)
            weight = torch.empty(64, device=device)
            normed = functional.group_norm(picture, 8, weight, weight)
            assert normed.is_contiguous(memory_format=NHWC if device == "cpu" else torch.contiguous_format)
            assert functional.interpolate(picture, scale_factor=2.0).is_contiguous(memory_format=NHWC)


def test_the_layouts_of_convolutions_and_norms():
    picture, weight = torch.empty(1, 8, 16, 16), torch.empty(4, 8, 3, 3).to(memory_format=NHWC)
    result, operation = torch.empty(1, 4, 16, 16), aten.convolution.default
    assert laid_out("cuda", operation, (picture, weight), result).is_contiguous(memory_format=NHWC)
    assert workspace("cuda", operation, (picture, weight), result) == nbytes(picture)
    assert workspace("cuda", operation, (picture.to(memory_format=NHWC), weight), result) == 0
    both = nbytes(picture) + nbytes(result)
    assert workspace("cuda", operation, (picture, weight.contiguous()), result) == nbytes(weight) + both
    assert laid_out("cpu", operation, (picture, weight), result) is result
    nhwc, norm = picture.to(memory_format=NHWC), aten.native_group_norm.default
    assert laid_out("cuda", norm, (nhwc,), (nhwc, None))[0].is_contiguous()
    assert workspace("cuda", norm, (nhwc,), None) == nbytes(nhwc)
    assert workspace("cuda", norm, (picture,), None) == workspace("cpu", norm, (nhwc,), None) == 0


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("family", ["z-image", "lumina-image-2", "lumina-next"])
def test_a_plan_for_a_card_is_the_same_with_and_without_cuda(tiny_models, family):
    """The stages' own code on fake tensors of the CPU, and on fake CUDA tensors: the same peaks and operations, but for
    what is copied between the two."""
    checkpoint = read_checkpoint(tiny_models[family])
    chosen, costs = family_of(checkpoint), []
    for device in (torch.device("cpu"), CARD):
        bare = skeleton(checkpoint, chosen, torch.bfloat16)
        with guard(), bare.mode, torch.no_grad():
            for module in bare.components.modules.values():
                convert(module, functools.partial(empty_like, device=device))
            costs.append(stages(chosen, bare, device))
    for cpu, cuda in zip(*costs):
        assert cpu.peak_bytes == pytest.approx(cuda.peak_bytes, rel=0.01, abs=512)  # token ids
        assert cpu.flops == cuda.flops


def stages(family, bare: Skeleton, device: torch.device) -> list[measuring.Cost]:
    parts, conditioning = bare.components, []
    latents = torch.empty(1, parts.vae.config.latent_channels, 16, 16, device=device)

    def encode() -> None:
        conditioning.append(family.encode(parts, ["a red star"], ["blurry"]))

    def step() -> None:
        family.predictor(parts, conditioning[0], 3.0, latents.shape)(latents, torch.empty((), device=device))

    def decode() -> None:
        parts.vae.decode(latents.bfloat16(), return_dict=False)

    return [measuring._cost(stage, parts, "cuda") for stage in (encode, step, decode)]
