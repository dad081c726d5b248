"""The engine's pictures against those of the bare diffusers pipelines, called with the same arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, ZImageImg2ImgPipeline
from PIL import Image

from candela import Engine, InvalidRequest, Request
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import draw, held_out_prompts
from candela.demo.world import Scene
from candela.families import FAMILIES
from tests import tiny

PROMPT = "A large RED star on a blue background"
NEGATIVE = "a small green circle"


def bare(folder, **arguments):
    """-> (picture, latents in the model's scale) of the bare pipeline, from the same seed on the CPU."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    seed = arguments.pop("seed")

    def run(kind):
        return pipeline(generator=torch.Generator("cpu").manual_seed(seed), output_type=kind, **arguments).images

    return run("pil")[0], run("latent")


def assert_same(engine: Engine, request: Request, picture: Image.Image, latents: torch.Tensor) -> None:
    ours = engine.generate(request).images[0]
    assert ours.size == picture.size
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(picture, dtype=int))
    assert difference.max() <= 1
    assert np.asarray(picture).std() > 2, "the reference is a blank picture, which proves nothing"
    conditioning = engine._encode_for(engine.check(request))
    raw = engine.denoise(request, conditioning)
    in_model_scale = engine.family.to_model(engine.components.vae, raw)
    error = (in_model_scale - latents).norm() / latents.norm()
    assert error < 1e-4


@pytest.mark.parametrize(("guidance", "negative"), [(0.0, None), (3.0, NEGATIVE), (3.0, None)])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (160, 96)])
def test_z_image_demo(demo, guidance, negative, width, height):
    picture, latents = bare(
        DEMO_FOLDER, prompt=PROMPT, negative_prompt=negative, width=width, height=height,
        num_inference_steps=8, guidance_scale=guidance, seed=5,
    )  # fmt: skip
    request = Request(PROMPT, negative, width=width, height=height, guidance=guidance, seed=5)
    assert_same(demo, request, picture, latents)


def test_fifty_demo_prompts(demo):
    """Never trained on, of all lengths, in batches whose prompts pad each other."""
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(DEMO_FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [text for text, _ in held_out_prompts(50, 3)]
    lengths, largest = set(), 0
    for first in range(0, 50, 10):
        texts, seeds = prompts[first : first + 10], range(first, first + 10)
        lengths |= {demo.family.tokenize(demo.components, text).shape[1] for text in texts}
        theirs = pipeline(
            list(texts), width=128, height=128, num_inference_steps=8, guidance_scale=0.0,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip
        ours = demo.generate(Request(texts, seed=first)).images
        for one, other in zip(ours, theirs):
            largest = max(largest, int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()))
    assert largest <= 1
    assert len(lengths) > 5


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, None), (4.0, NEGATIVE), (4.0, None)])
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
@pytest.mark.parametrize("name", ["z-image", "lumina-image-2", "lumina-next"])
def test_tiny_models(tiny_models, name, guidance, negative, size):
    width, height = size
    extra = {"clean_caption": False} if name == "lumina-next" else {}
    picture, latents = bare(
        tiny_models[name], prompt=PROMPT, negative_prompt=negative, width=width, height=height,
        num_inference_steps=5, guidance_scale=guidance, seed=5, **extra,
    )  # fmt: skip
    request = Request(PROMPT, negative, width=width, height=height, steps=5, guidance=guidance, seed=5)
    assert_same(Engine.load(tiny_models[name], device="cpu"), request, picture, latents)


@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
def test_lumina_image_2_whose_tokenizer_puts_no_token_first(tmp_path, negative):
    """Its empty negative prompt is no tokens at all."""
    folder = tiny.lumina_image_2(tmp_path, bos=False)
    size = {"width": 64, "height": 96}
    picture, latents = bare(
        folder, prompt=PROMPT, negative_prompt=negative, num_inference_steps=3, guidance_scale=4.0, seed=5, **size
    )
    engine = Engine.load(folder, device="cpu")
    request = Request(PROMPT, negative, steps=3, guidance=4.0, seed=5, **size)
    assert_same(engine, request, picture, latents)
    many = Request(["a", "b"], [negative or "", NEGATIVE], steps=1, guidance=4.0, seed=5, **size)
    batch, alone = engine.generate(many), engine.generate(many.alone(0))
    difference = np.asarray(batch.images[0], dtype=int) - np.asarray(alone.images[0], dtype=int)
    assert abs(difference).max() <= 1


def test_lumina_next_whose_tokenizer_puts_no_token_first(tmp_path):
    """There the bare pipeline gives a black picture: attention over nothing is NaN."""
    engine = Engine.load(tiny.lumina_next(tmp_path, bos=False), device="cpu")
    size = {"width": 64, "height": 64, "steps": 1, "guidance": 4.0}
    for run in (engine.check, engine.generate):
        with pytest.raises(InvalidRequest, match="the negative prompt '' has no tokens, and lumina-next needs one"):
            run(Request(PROMPT, **size))
    with pytest.raises(InvalidRequest, match=r"the prompt '' has no tokens.* Use that tokenizer, or say what it shows"):
        engine.check(Request("", "x", **size))
    assert np.asarray(engine.generate(Request(PROMPT, NEGATIVE, **size)).images[0]).std() > 2
    assert np.asarray(engine.generate(Request(PROMPT, **(size | {"guidance": 1}))).images[0]).std() > 2


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.25])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_z_image_image_to_image(demo, strength, guidance):
    image = draw(Scene("cross", "yellow", "purple", "top left", "large"), 128, 160)
    pipeline = ZImageImg2ImgPipeline.from_pretrained(DEMO_FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def run(kind):
        return pipeline(
            PROMPT, image=image, strength=strength, num_inference_steps=8, guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(5), output_type=kind,
        ).images  # fmt: skip

    request = Request(PROMPT, image=image, strength=strength, guidance=guidance, seed=5)
    assert_same(demo, request, run("pil")[0], run("latent"))


@pytest.mark.parametrize("name", ["z-image", "lumina-image-2", "lumina-next"])
@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_prompts_of_any_length_do_not_disturb_each_other(tiny_models, name, guidance):
    engine = Engine.load(tiny_models[name], device="cpu")
    size = {"width": 96, "height": 64, "steps": 4, "guidance": guidance}
    negatives = ["", "a rather long text of things that should not be there", "x"] if guidance else None
    batch = engine.generate(Request(["a", PROMPT, "b" * 90], negatives, seed=3, **size))
    alone = engine.generate(batch.request.alone(1))
    difference = np.abs(np.asarray(batch.images[1], dtype=int) - np.asarray(alone.images[0], dtype=int))
    assert difference.max() <= 1


@pytest.mark.parametrize("name", ["z-image", "lumina-image-2", "lumina-next"])
def test_longest_prompt_is_used_whole(tiny_models, name):
    """Up to the limit the last word still counts: another last letter is another picture."""
    engine = Engine.load(tiny_models[name], device="cpu")
    frame = engine.family.tokenize(engine.components, "").shape[1]
    room = engine.family.max_tokens - frame
    start = "x" * (room - 1)
    one, other = engine.encode([start + "a", start + "b"]).positive
    assert one.shape[0] == engine.family.max_tokens
    assert not torch.equal(one, other)


def test_every_family_names_a_pipeline_that_diffusers_has():
    import diffusers

    for family in FAMILIES:
        assert hasattr(diffusers, family.pipelines[0])
        assert hasattr(diffusers, family.transformer_class)


def test_cfg_conventions(demo):
    by_name = {family.name: family for family in FAMILIES}
    assert by_name["z-image"].cfg(0.0) == 1.0
    assert by_name["z-image"].cfg(3.0) == 4.0
    assert by_name["lumina-image-2"].cfg(4.0) == 4.0
    assert by_name["lumina-next"].cfg(1.0) == 1.0
