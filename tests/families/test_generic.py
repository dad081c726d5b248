"""Pipelines of diffusers behind the engine: the same pixels as bare, and everything else that Candela promises."""

from __future__ import annotations

import functools
import json
import re
import shutil
import warnings

import diffusers
import numpy as np
import pytest
import torch

from candela import Cancelled, CandelaWarning, DamagedFile, Engine, InvalidRequest, MismatchedModel, Request
from candela.checkpoints import read_folder
from candela.families import Defaults, family_of
from candela.families.generic import pipeline_class, why_not
from tests import pipelines_doc, tiny_pipelines
from tests.tiny_pipelines import PIPELINES, SIZES, VARIANTS

PROMPT = "A large RED star on a blue background"
SLOW = {"HiDreamImagePipeline"}  # makes a megapixel whatever is asked for


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other at every tiny operation cost minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (the bare pipeline, its folder, an engine that has loaded it), each made once."""
    root = tmp_path_factory.mktemp("pipelines")

    @functools.cache
    def make(name):
        torch.manual_seed(0)
        bare = PIPELINES[name]()
        bare.set_progress_bar_config(disable=True)
        bare.save_pretrained(root / name)
        return bare, root / name, Engine.load(root / name, device="cpu", dtype="float32")

    return make


def request_for(name, engine, **more):
    width, height = SIZES.get(name, (64, 96) if engine.family.size_multiple == 32 else (64, 48))
    return Request(**{"prompt": PROMPT, "seed": 5, "steps": 3, "width": width, "height": height, **more})


def bare_picture(bare, engine, request, **more):
    """The pipeline's own call with the same arguments."""
    family, full = engine.family, engine.check(request)
    wanted = {
        "width": full.width, "height": full.height, family.steps_name: full.steps, family.guidance_name: full.guidance,
        "use_resolution_binning": False, "max_area": full.width * full.height, "intermediate_timesteps": None, **more,
    }  # fmt: skip
    arguments = {name: value for name, value in wanted.items() if name in family.settings}
    return bare(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(full.seeds[0]), **arguments)[0][0]


def apart(one, other) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("name", PIPELINES)
def test_pixels_are_those_of_the_bare_pipeline(made, name):
    bare, _, engine = made(name)
    request, steps = request_for(name, engine), []
    picture = engine.generate(request, on_step=lambda step: steps.append((step.index, step.steps))).images[0]
    reference = bare_picture(bare, engine, request)
    assert np.asarray(reference).std() > 2, "the reference is a blank picture, which proves nothing"
    assert apart(picture, reference) <= 1
    assert [index for index, _ in steps] == list(range(1, len(steps) + 1))
    assert len(steps) >= 3
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("name", sorted(PIPELINES.keys() - SLOW))
def test_a_picture_alone_is_the_one_in_a_batch_and_a_stopped_run_leaves_no_trace(made, name):
    engine = made(name)[2]
    batch = engine.generate(request_for(name, engine, prompt=["a", PROMPT], seed=4, steps=2))
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Cancelled):
        engine.generate(batch.request.alone(1), cancelled=cancelled)
    alone = engine.generate(batch.request.alone(1)).images[0]
    assert apart(alone, batch.images[1]) <= 1
    assert apart(batch.images[0], batch.images[1]) > 1


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "PixArtSigmaPipeline", "QwenImagePipeline"]
)
def test_negative_prompts_are_the_pipelines_own(made, name):
    bare, _, engine = made(name)
    request = request_for(name, engine, negative_prompt="a small green circle")
    reference = bare_picture(bare, engine, request, negative_prompt="a small green circle")
    picture = engine.generate(request).images[0]
    assert apart(picture, reference) <= 1
    assert apart(picture, engine.generate(request_for(name, engine)).images[0]) > 0


def test_a_negative_prompt_that_no_one_reads_is_told(made):
    engine = made("Flux2KleinPipeline")[2]
    with pytest.warns(CandelaWarning, match="no effect: Flux2KleinPipeline takes none"):
        engine.generate(request_for("Flux2KleinPipeline", engine, negative_prompt="x"))


def test_a_prompt_that_the_pipeline_cuts_is_told(made):
    engine = made("StableDiffusionPipeline")[2]
    with pytest.warns(CandelaWarning, match="StableDiffusionPipeline: .*truncated because CLIP can only handle"):
        engine.generate(request_for("StableDiffusionPipeline", engine, prompt="star " * 40))


@pytest.mark.parametrize(("threshold", "black"), [(2.0, False), (-2.0, True)])
def test_a_safety_checker_is_kept_and_asked(tmp_path, threshold, black):
    bare = tiny_pipelines.with_safety_checker(threshold)
    bare.set_progress_bar_config(disable=True)
    bare.save_pretrained(tmp_path)
    engine = Engine.load(tmp_path, device="cpu")
    request = request_for("StableDiffusionPipeline", engine)
    picture = engine.generate(request).images[0]
    assert apart(picture, bare_picture(bare, engine, request)) <= 1
    assert (np.asarray(picture).max() == 0) == black


# --- sizes and defaults -----------------------------------------------------------------------------


def test_sdxl_turbo_has_its_own_defaults(made):
    folder = read_folder(made("sdxl-turbo")[1])
    assert family_of(folder).defaults(folder) == Defaults(512, 512, 1, 0.0)
    folder = read_folder(made("StableDiffusionXLPipeline")[1])
    assert family_of(folder).defaults(folder) == Defaults(64, 64, 50, 5.0)


@pytest.mark.parametrize(
    ("name", "multiple", "near"),
    [
        ("StableDiffusionPipeline", 8, "use 64 or 72"),
        ("FluxPipeline", 16, "use 64 or 80"),
        ("SanaPipeline", 32, "use 64 or 96"),
        ("QwenImagePipeline", 16, "use 64 or 80"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_before_anything_is_loaded(made, name, multiple, near):
    folder = read_folder(made(name)[1])
    family = family_of(folder)
    with pytest.raises(InvalidRequest, match=f"width 65 is not a multiple of {multiple}: {near}"):
        Request("a", width=65, height=64).resolved(family, family.defaults(folder))


@pytest.mark.parametrize("name", ["KandinskyV22CombinedPipeline", "Kandinsky3Pipeline", "HiDreamImagePipeline"])
def test_a_size_that_the_pipeline_would_change_in_silence_is_refused_before_the_first_step(made, name):
    engine = made(name)[2]
    steps = []
    with pytest.raises(InvalidRequest, match=rf"{name} makes a picture of \d+x\d+ when asked for 64x88: ask for"):
        engine.generate(Request("a", width=64, height=88, steps=2), on_step=steps.append)
    assert len(steps) <= 25, "a prior may have run, but no step of the decoder"


def advised(message: str) -> tuple[int, int]:
    return tuple(map(int, re.search(r"ask for (\d+)x(\d+)", message).groups()))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("KandinskyV22CombinedPipeline", (64, 88)),
        ("Kandinsky3Pipeline", (64, 88)),
        ("HiDreamImagePipeline", (64, 88)),
        ("HiDreamImagePipeline", (224, 2144)),  # scaled four times until it rests
    ],
)
def test_the_size_that_is_advised_is_made(made, name, size):
    engine, stop = made(name)[2], []
    with pytest.raises(InvalidRequest, match=rf"{name} makes a picture of \d+x\d+ when asked for") as refused:
        engine.generate(Request("a", width=size[0], height=size[1], steps=2))
    width, height = advised(str(refused.value))
    with pytest.raises(Cancelled):  # after a step, which no refused size comes to
        engine.generate(
            Request("a", width=width, height=height, steps=2), on_step=stop.append, cancelled=lambda: bool(stop)
        )


def test_a_pipeline_with_few_sizes_names_them_before_anything_is_loaded(tmp_path):
    tiny_pipelines.kandinsky_5().save_pretrained(tmp_path)
    folder = read_folder(tmp_path)
    family = family_of(folder)
    for width, height in ((512, 512), (1024, 1040)):
        with pytest.raises(
            InvalidRequest, match=rf"Kandinsky5T2IPipeline does not make {width}x{height}: .*\(1024,1024\),\(640,1408\)"
        ):
            Request("a", width=width, height=height).resolved(family, family.defaults(folder))
    full = Request("a", width=640, height=1408).resolved(family, family.defaults(folder))
    assert (full.width, full.height) == (640, 1408)


@pytest.mark.parametrize(
    ("name", "make", "component"),
    [
        ("LDMTextToImagePipeline", tiny_pipelines.latent_diffusion, "vqvae"),
        ("Kandinsky5T2IPipeline", tiny_pipelines.kandinsky_5, "vae"),
    ],
)
def test_a_vae_that_the_pipeline_does_not_count_with_is_refused_before_anything_is_loaded(
    tmp_path, name, make, component
):
    """Every picture would have half the size, and so has no size that could be advised."""
    make(blocks=3).save_pretrained(tmp_path)
    with pytest.raises(
        MismatchedModel, match=rf"{component}: one latent of this VAE is 4x4 pixels; {name} works with VAEs of 8x8"
    ):
        family_of(read_folder(tmp_path))


def test_starting_from_a_picture_is_refused_by_name(made):
    engine = made("FluxPipeline")[2]
    image = diffusers.utils.numpy_to_pil(np.zeros((1, 64, 64, 3)))[0]
    with pytest.raises(InvalidRequest, match="FluxPipeline makes pictures from text only here"):
        engine.check(Request("a", image=image))
    with pytest.raises(InvalidRequest, match="FluxPipeline makes pictures from text only here"):
        engine.encode_image(image, 64, 64)


def test_what_the_pipeline_refuses_is_said_in_its_words(made):
    engine = made("LatentConsistencyModelPipeline")[2]
    with pytest.raises(
        InvalidRequest,
        match=r"LatentConsistencyModelPipeline refuses this: .*is smaller than `num_inference_steps`: 60",
    ):
        engine.generate(request_for("LatentConsistencyModelPipeline", engine, steps=60))


# --- the stages by themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("StableDiffusionPipeline", (2, 4, 6, 8)),
        ("FluxPipeline", (2, 16, 6, 8)),  # unpacked
        ("Flux2KleinPipeline", (2, 4, 6, 8)),  # unpacked, without batch norm
        ("QwenImagePipeline", (2, 16, 6, 8)),  # the frame of a video's VAE
        ("SanaPipeline", (2, 4, 3, 2)),
        ("IFPipeline", (2, 3, 48, 64)),  # pixels
    ],
)
def test_latents_at_the_border_are_raw_vae_space(made, name, shape):
    engine = made(name)[2]
    request = request_for(name, engine, count=2, steps=2)
    latents = engine.denoise(request, engine.encode([PROMPT], [""]))
    assert tuple(latents.shape) == shape
    assert latents.dtype == torch.float32
    assert engine.latent_channels == shape[1]
    assert [apart(a, b) for a, b in zip(engine.decode(latents), engine.generate(request).images)] == [0, 0]


def test_stages_of_another_model_are_told_apart(made, demo):
    engine = made("StableDiffusionPipeline")[2]
    with pytest.raises(InvalidRequest, match="with the same model"):
        engine.denoise(request_for("StableDiffusionPipeline", engine), demo.encode([PROMPT]))
    with pytest.raises(InvalidRequest, match="text features of width 0"):
        demo.denoise(Request(PROMPT), engine.encode([PROMPT]))
    with pytest.raises(InvalidRequest, match=r"its VAE takes \[pictures, 4,"):
        engine.decode(torch.zeros(1, 16, 8, 8))


def test_an_error_of_the_callback_comes_through_as_it_is(made):
    engine = made("StableDiffusionPipeline")[2]

    def on_step(step):
        raise RuntimeError("the window was closed")

    with pytest.raises(RuntimeError, match="the window was closed"):
        engine.generate(request_for("StableDiffusionPipeline", engine), on_step=on_step)
    engine.generate(request_for("StableDiffusionPipeline", engine))


def test_with_a_residency_all_components_are_asked_for_together(made):
    folder = made("StableDiffusionXLPipeline")[1]
    asked = []

    class Watching:
        def __init__(self, components): ...

        def need(self, component, pixels=0):
            raise AssertionError("a pipeline that runs whole needs everything at once")

        def need_all(self, pixels=0):
            asked.append(pixels)

    engine = Engine.load(folder, device="cpu", residency=Watching)
    engine.generate(Request("a", width=64, height=48, steps=1))
    assert asked == [64 * 48, 64 * 48]


# --- folders ----------------------------------------------------------------------------------------


def edit(path, **values):
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))


def test_half_precision_files_load_where_they_are_all_there_is(made, tmp_path):
    bare = made("StableDiffusionXLPipeline")[0]
    bare.save_pretrained(tmp_path / "both")
    bare.save_pretrained(tmp_path / "half", variant="fp16")
    assert read_folder(tmp_path / "half").parts["unet"].files[0].name == "diffusion_pytorch_model.fp16.safetensors"
    request = Request(PROMPT, width=64, height=48, steps=2)
    whole = Engine.load(tmp_path / "both", device="cpu").generate(request).images[0]
    assert apart(Engine.load(tmp_path / "half", device="cpu").generate(request).images[0], whole) <= 1
    bare.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="30KB")
    assert (tmp_path / "shards" / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    assert apart(Engine.load(tmp_path / "shards", device="cpu").generate(request).images[0], whole) <= 1


def test_of_both_precisions_the_half_one_is_read_only_for_float16(made, tmp_path):
    folder = shutil.copytree(made("StableDiffusionPipeline")[1], tmp_path / "model")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.with_suffix(".fp16.safetensors").write_bytes(b"broken")
    Engine.load(folder, dtype="float32", device="cpu")
    with pytest.raises(DamagedFile, match=r"fp16.safetensors is not a safetensors file"):
        Engine.load(folder, dtype="float16", device="cpu")


def test_a_missing_component_is_named(made, tmp_path):
    folder = shutil.copytree(made("StableDiffusionXLPipeline")[1], tmp_path / "model")
    (folder / "unet").rename(folder / "elsewhere")
    with pytest.raises(MismatchedModel, match="the component 'unet' is missing"):
        Engine.load(folder, device="cpu")
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(MismatchedModel, match="has no unet; StableDiffusionXLPipeline needs vae, unet, scheduler"):
        Engine.load(folder, device="cpu")


# --- which pipelines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusionImg2ImgPipeline", r"starts from a picture \(image\)"),
        ("StableDiffusionXLInpaintPipeline", r"repaints a picture \(mask_image\)"),
        ("FluxControlNetPipeline", r"a picture to be controlled by \(controlnet\)"),
        ("WanPipeline", r"makes videos or scenes \(num_frames\)"),
        ("AudioLDMPipeline", r"makes sound \(audio_length_in_s\)"),
        ("DiTPipeline", "takes no prompt"),
        ("KandinskyV22PriorPipeline", "returns no pictures"),
        ("LLaDA2Pipeline", "returns no pictures"),
        ("QwenImageEditPipeline", r"starts from a picture \(image\)"),
    ],
)
def test_what_is_not_text_to_image_is_refused_by_name_before_loading(demo_copy, name, reason):
    edit(demo_copy / "model_index.json", _class_name=name)
    with pytest.raises(MismatchedModel, match=rf"is a {name}; Candela runs .*{reason}"):
        family_of(read_folder(demo_copy))


def test_every_tested_pipeline_counts_as_text_to_image():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [name for name in PIPELINES.keys() - VARIANTS if why_not(pipeline_class(name))] == []


def test_the_list_of_pipelines_is_up_to_date():
    """Write it anew with `python -m tests.pipelines_doc`."""
    if f"diffusers {diffusers.__version__} has" not in pipelines_doc.FILE.read_text():
        pytest.skip("it is about another version of diffusers than this one")
    assert pipelines_doc.FILE.read_text() == pipelines_doc.text()
