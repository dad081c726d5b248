"""The faster forms of the same maths, held against diffusers' own classes; whole pictures are in test_parity.py."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models.normalization import RMSNorm
from diffusers.models.upsampling import Upsample2D
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from candela import Engine, Request
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import held_out_prompts
from candela.families.base import last_but_one
from candela.families.layers import attend, from_patches, mask_beyond, rms_norm, rotate, to_patches
from candela.families.vae import quicken, upsample
from tests.tiny import vae as tiny_vae

BLOCKS = {"z-image": "ZImageTransformerBlock", "lumina-image-2": "Lumina2TransformerBlock"}


def blocks_of(transformer, part):
    return list(getattr(transformer, part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_that_of_diffusers(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(48, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(2, 5, 48) * 30).to(dtype)
    before = x.clone()
    near = {"rtol": 2e-2 if dtype.itemsize == 2 else 1e-5, "atol": 0.0}
    torch.testing.assert_close(rms_norm(x, norm.weight, 1e-5), norm(x), **near)
    scaled = rms_norm(x, norm.weight * torch.full((2, 1, 48), 3.0, dtype=dtype), 1e-5)
    torch.testing.assert_close(scaled, norm(x) * 3, **near)
    assert torch.equal(x, before), "what came in was changed"


def test_patches_come_back():
    latents = torch.randn(2, 16, 6, 10)
    assert torch.equal(from_patches(to_patches(latents), 6, 10), latents)


def test_there_is_no_mask_where_lengths_agree():
    assert mask_beyond([3, 3], 2, 1, torch.device("cpu")) is None
    mask = mask_beyond([3, 1], 2, 1, torch.device("cpu"))
    assert mask.tolist() == [[True] * 6, [True, True, True, False, False, True]]


@pytest.mark.parametrize("name", ["z-image", "lumina-image-2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_equal_those_of_diffusers(tiny_models, name, dtype):
    """Called as diffusers calls them, with and without modulation and mask."""
    stock = DiffusionPipeline.from_pretrained(tiny_models[name], dtype=dtype).transformer
    ours = Engine.load(tiny_models[name], dtype=str(dtype).removeprefix("torch."), device="cpu").components.transformer
    torch.manual_seed(1)
    dim = stock.config.get("dim") or stock.config["hidden_size"]
    pairs = sum(stock.config.get("axes_dims") or stock.config["axes_dim_rope"]) // 2
    x, condition = torch.randn(2, 12, dim, dtype=dtype), torch.randn(2, min(dim, 256), dtype=dtype)
    rotary = torch.polar(torch.ones(2, 12, pairs), torch.randn(2, 12, pairs))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    largest = 0.0
    for part in ("noise_refiner", "context_refiner", "layers"):
        for theirs, own in zip(blocks_of(stock, part), blocks_of(ours, part)):
            assert type(own).forward is not type(theirs).forward
            assert isinstance(own, type(theirs)) and type(own).__name__ == BLOCKS[name]
            given = condition if part != "context_refiner" else None
            for visible in (None, mask):
                with torch.no_grad():
                    expected, got = theirs(x, visible, rotary, given), own(x, visible, rotary, given)
                real = mask if visible is not None else torch.ones_like(mask)
                error = (got - expected)[real].float().norm() / (expected - x)[real].float().norm()
                largest = max(largest, error.item())
    assert largest < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_text_encoder_with_a_head_does_as_well(tiny_models):
    """Some folders name Qwen3ForCausalLM: the text encoder is inside it."""
    from transformers import Qwen3ForCausalLM

    engine = Engine.load(tiny_models["z-image"], device="cpu")
    body = engine.components.text_encoder
    whole = Qwen3ForCausalLM(body.config).eval()
    whole.model.load_state_dict(body.state_dict())
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        expected = body(input_ids=ids, output_hidden_states=True).hidden_states[-2][0]
        for text_encoder in (body, whole):
            torch.testing.assert_close(last_but_one(text_encoder, ids), expected)


def test_compiled_rotation_is_the_same():
    """What a compiler gets is written without complex numbers, which it cannot fuse."""
    x, rotary = torch.randn(2, 5, 3, 8), torch.polar(torch.ones(1, 5, 4), torch.randn(1, 5, 4))
    compiled = torch.compile(rotate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x.clone(), rotary), rotate(x.clone(), rotary))


@pytest.mark.parametrize("name", ["z-image", "lumina-image-2"])
def test_the_text_is_refined_once_a_request(tiny_models, name):
    engine = Engine.load(tiny_models[name], device="cpu")
    transformer = engine.components.transformer
    runs = {"context_refiner": 0, "layers": 0}
    for part in runs:
        blocks_of(transformer, part)[0].register_forward_hook(
            lambda *_, part=part: runs.__setitem__(part, runs[part] + 1)
        )
    engine.generate(Request("a star", width=64, height=64, steps=3, guidance=0.0))
    assert runs == {"context_refiner": 1, "layers": 3}


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [(7, 7), (7, 5)])
def test_attention_with_fewer_heads_of_keys(heads, lengths):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 7, n, 8) for n in (4, heads, heads))
    q, k, v = (x.repeat_interleave(4 // x.shape[2], dim=2).transpose(1, 2).double() for x in (query, key, value))
    mask = mask_beyond(list(lengths), 0, 0, torch.device("cpu"))
    scores = q @ k.mT / 8**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2).float()
    torch.testing.assert_close(attend(query, key, value, mask), expected)


class Kernels(TorchFunctionMode):
    """Which of CUDA's attention kernels a call would get: the conditions of sdp_utils.cpp that depend on the call
    alone (can_use_flash_attention, can_use_mem_efficient_attention), which torch answers with a card only."""

    def __init__(self, ampere: bool):
        super().__init__()
        self.ampere, self.found = ampere, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        (query, key, value), mask = args, kwargs["attn_mask"]
        half = query.dtype in (torch.float16, torch.bfloat16)
        alike = query.shape[1] == key.shape[1] == value.shape[1] and not kwargs["enable_gqa"]
        if mask is None and self.ampere and half:
            self.found.append("flash")
        elif alike and query.shape[-1] % (8 if half else 4) == 0 and query.stride(-1) == key.stride(-1) == 1:
            self.found.append("memory-efficient")
        else:
            self.found.append("math")
        return torch.empty_like(query)


@pytest.mark.parametrize("lengths", [(7, 7), (7, 5)])
@pytest.mark.parametrize(
    ("dtype", "ampere"), [(torch.bfloat16, True), (torch.float32, True), (torch.float16, False), (torch.float32, False)]
)
def test_cuda_computes_attention_by_a_fused_kernel(lengths, dtype, ampere):
    """Lumina-Image 2.0's heads, prompts of one length and of two."""
    with FakeTensorMode(), Kernels(ampere) as kernels:
        query, key, value = (torch.empty(2, 7, n, 96, dtype=dtype, device="cuda") for n in (24, 8, 8))
        mask = torch.empty(2, 7, dtype=torch.bool, device="cuda") if len(set(lengths)) > 1 else None
        visible = attend(query, key, value, mask)
    assert visible.shape == (2, 7, 24 * 96)
    flash = mask is None and ampere and dtype != torch.float32
    assert kernels.found == ["flash" if flash else "memory-efficient"]


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (16, 12)])
def test_upsampling_equals_that_of_diffusers(size):
    torch.manual_seed(2)
    stock = AutoencoderKL(
        latent_channels=4, block_out_channels=[16, 16], layers_per_block=1, norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    ).eval()  # fmt: skip
    ours = copy.deepcopy(stock)
    quicken(ours)
    replaced = [up for up in ours.modules() if isinstance(up, Upsample2D)]
    assert replaced
    assert all(type(up).forward is upsample for up in replaced)
    latents = torch.randn(2, 4, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(latents).sample, stock.decode(latents).sample, rtol=1e-4, atol=1e-5)


def test_in_16_bits_the_weights_are_not_summed():
    """Their sums would be rounded, and the picture be another one."""
    vae = tiny_vae(16, 1, 0.1159, 0.3611).bfloat16()
    quicken(vae)
    assert not [up for up in vae.modules() if isinstance(up, Upsample2D) and type(up) is not Upsample2D]


def test_in_bfloat16_ours_is_as_near_to_the_float32_picture_as_diffusers_own():
    """There the same formulas round differently in another order; neither side may be the worse for it."""
    import numpy as np

    prompts = [text for text, _ in held_out_prompts(4, 3)]

    def diffusers(dtype):
        pipeline = DiffusionPipeline.from_pretrained(DEMO_FOLDER, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            list(prompts), width=128, height=128, num_inference_steps=8, guidance_scale=0.0, output_type="np",
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(4)],
        ).images  # fmt: skip

    truth = diffusers(torch.float32)
    ours = Engine.load("demo", dtype="bfloat16", device="cpu").generate(Request(prompts)).images
    distances = [
        float(np.abs(pictures - truth).mean()) * 255
        for pictures in (np.stack([np.asarray(image) / 255 for image in ours]), diffusers(torch.bfloat16))
    ]
    assert distances[0] < 1.5 * distances[1]
    assert 0 < distances[0] < 1


def test_state_dicts_stay_as_they_are(tiny_models):
    """LoRAs, offloading and whoever saves a model find the same parameters."""
    stock = DiffusionPipeline.from_pretrained(tiny_models["z-image"], dtype=torch.float32)
    components = Engine.load(tiny_models["z-image"], device="cpu").components
    for name in ("transformer", "vae", "text_encoder"):
        theirs, own = getattr(stock, name).state_dict(), getattr(components, name).state_dict()
        assert theirs.keys() == own.keys()
        assert all(torch.equal(theirs[key], own[key]) for key in theirs)
