"""One engine, many requests: the same seed gives the same picture whatever came before or runs beside."""

from __future__ import annotations

import dataclasses
import itertools
import random
import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from candela import Cancelled, CandelaWarning, Engine, GenerationError, InvalidRequest, OutOfMemory, Request
from candela.demo import Scene, check, draw
from tests.conftest import STAR, pixels


def apart(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def test_the_picture_is_right(demo):
    for prompt in ("a large red star on a blue background", "a green cross on the right, white background"):
        assert check(demo.generate(Request(prompt, seed=15)).images[0], prompt).ok


def test_same_seed_same_pixels_again_and_from_a_second_thread(demo, star_pixels):
    assert pixels(demo.generate(STAR).images[0]) == star_pixels
    found = []
    thread = threading.Thread(target=lambda: found.append(pixels(demo.generate(STAR).images[0])))
    thread.start()
    thread.join()
    assert found == [star_pixels]
    assert pixels(demo.generate(dataclasses.replace(STAR, seed=16)).images[0]) != star_pixels


def test_a_fresh_engine_gives_the_same_pixels(star_pixels):
    assert pixels(Engine.load("demo", device="cpu").generate(STAR).images[0]) == star_pixels


def test_third_of_four_with_other_prompts_beside_it(demo):
    alone = demo.generate(STAR).images[0]
    others = ["a tiny yellow circle in the top left corner, black background", "green cross, pink background"]
    batch = demo.generate(
        Request([*others, STAR.prompts[0], "x" * 120], seed=STAR.seed - 2)  # lengths 32, 32, 32 and beyond
    )
    assert batch.seeds == [13, 14, 15, 16]
    assert apart(batch.images[2], alone) <= 1


def test_a_bare_text_is_no_request(demo):
    with pytest.raises(InvalidRequest, match=r"not str: Request\('a red star'\)"):
        demo.generate("a red star")


def test_each_picture_may_have_its_own_seed(demo, star_pixels):
    result = demo.generate(dataclasses.replace(STAR, seed=[99, STAR.seed], count=2))
    assert result.seeds == [99, STAR.seed]
    assert apart(result.images[1], demo.generate(STAR).images[0]) <= 1
    assert [record.seed for record in result.records] == [99, STAR.seed]
    assert result.request.alone(1).seeds == (STAR.seed,)


def test_components_are_asked_for_before_they_are_used(star_pixels):
    class Fetching:
        """Leaves only the component that was asked for: the others' tensors are emptied."""

        def __init__(self, components):
            self.asked = []
            self.tensors = {
                name: [(t, t.data) for m in [getattr(components, name)] for t in (*m.parameters(), *m.buffers())]
                for name in ("transformer", "text_encoder", "vae")
            }
            self.leave(None)

        def leave(self, component):
            for name, tensors in self.tensors.items():
                for tensor, content in tensors:
                    tensor.data = content if name == component else content.new_empty(0)

        def need(self, component, pixels=0):
            self.asked.append((component, pixels))
            self.leave(component)

    engine = Engine.load("demo", device="cpu", residency=Fetching)
    conditioning = engine.encode(STAR.prompts)
    latents = engine.denoise(STAR, conditioning)
    assert pixels(engine.decode(latents)[0]) == star_pixels
    assert engine.residency.asked == [("text_encoder", 0), ("transformer", 128 * 128), ("vae", 128 * 128)]


def test_tiles_change_little_and_only_when_asked(demo):
    image = draw(Scene("cross", "yellow", "purple", "top left", "large"), 192, 192)
    latents = demo.encode_image(image, 192, 192)
    whole, tiled = demo.decode_pixels(latents), demo.decode_pixels(latents, tiled=True)
    assert not torch.equal(whole, tiled), "diffusers tiles above the VAE's own size, 128"
    assert (whole - tiled).abs().mean() < 0.05
    assert torch.equal(demo.decode_pixels(latents), whole), "and stops when it is done"


def test_many_threads_are_served_one_after_the_other(demo):
    requests = [Request(f"a {c} circle on a white background", seed=k) for k, c in enumerate(["red", "blue", "black"])]
    expected = [pixels(demo.generate(r).images[0]) for r in requests]
    found, order = {}, []

    def serve(k, request):
        found[k] = pixels(demo.generate(request, on_step=lambda step: order.append(k)).images[0])

    threads = [threading.Thread(target=serve, args=(k, r)) for k, r in enumerate(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[k] for k in range(3)] == expected
    turns = [k for k, _ in itertools.groupby(order)]
    assert sorted(turns) == [0, 1, 2], "the steps of two requests were mixed"


def test_cancelled_fifty_times_each_stops_within_a_step(demo, star_pixels):
    rng = random.Random(0)
    for _ in range(50):
        last = rng.randrange(0, 8)
        stop, seen = threading.Event(), []
        if last == 0:
            stop.set()

        def on_step(step, stop=stop, seen=seen, last=last):
            seen.append(step.index)
            if step.index == last:
                stop.set()

        with pytest.raises(Cancelled) as caught:
            demo.generate(STAR, on_step=on_step, cancelled=stop.is_set)
        assert seen == list(range(1, last + 1))
        assert (caught.value.step, caught.value.steps) == (last, 8)
    assert pixels(demo.generate(STAR).images[0]) == star_pixels


def test_cancelled_from_another_thread_at_any_moment(demo, star_pixels):
    rng = random.Random(1)
    for _ in range(10):
        stop, after = threading.Event(), []
        timer = threading.Timer(rng.uniform(0.0, 0.3), stop.set)
        timer.start()
        with pytest.raises(Cancelled):
            demo.generate(
                dataclasses.replace(STAR, steps=1000),
                on_step=lambda step, stop=stop, after=after: stop.is_set() and after.append(step.index),
                cancelled=stop.is_set,
            )
        assert len(after) <= 1
    assert pixels(demo.generate(STAR).images[0]) == star_pixels


def test_cancelled_after_the_last_step_gives_no_picture(demo):
    stop = threading.Event()
    with pytest.raises(Cancelled):
        demo.generate(STAR, on_step=lambda step: step.index == 8 and stop.set(), cancelled=stop.is_set)


def test_an_error_in_the_callback_reaches_the_caller_and_the_engine_survives(demo, star_pixels):
    def broken(step):
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        demo.generate(STAR, on_step=broken)
    assert pixels(demo.generate(STAR).images[0]) == star_pixels


def test_steps_are_reported_with_a_preview_that_shows_the_picture(demo):
    steps = []
    picture = demo.generate(STAR, on_step=steps.append).images[0]
    assert [s.index for s in steps] == list(range(1, 9))
    assert all(s.steps == 8 and s.seconds > 0 for s in steps)
    (preview,) = steps[-1].preview()
    assert preview.size == (16, 16)
    small = np.asarray(picture.resize((16, 16), 4), dtype=float)
    error = np.abs(np.asarray(preview, dtype=float) - small).mean()
    assert error < 24, "the preview of the last step does not look like the picture"
    other = demo.generate(Request("a green cross on the right, white background", seed=15)).images[0]
    other_small = np.asarray(other.resize((16, 16), 4), dtype=float)
    assert np.abs(np.asarray(preview, dtype=float) - other_small).mean() > 3 * error


def test_result_says_all_that_is_needed(demo):
    result = demo.generate(Request(["a red star", "a blue star"], seed=3, count=2))
    assert len(result.images) == 4
    assert result.seeds == [3, 4, 5, 6]
    assert [r.prompt for r in result.records] == ["a red star", "a red star", "a blue star", "a blue star"]
    seconds = result.seconds
    assert seconds.total == pytest.approx(seconds.encode + seconds.denoise + seconds.decode)
    assert seconds.load == demo.load_seconds > 0
    assert result.peak_bytes > 10_000_000
    assert (result.request.width, result.request.steps, result.request.guidance) == (128, 8, 0.0)
    again = demo.generate(dataclasses.replace(result.request, prompt="a blue star", count=1, seed=result.seeds[2]))
    assert apart(again.images[0], result.images[2]) <= 1


def test_stages_give_what_generate_gives(demo, star_pixels):
    conditioning = demo.encode(STAR.prompts)
    latents = demo.denoise(STAR, conditioning)
    assert latents.shape == (1, 16, 16, 16)
    assert latents.dtype == torch.float32
    assert pixels(demo.decode(latents)[0]) == star_pixels


def test_conditioning_that_does_not_fit_the_request_is_refused(demo):
    with pytest.raises(InvalidRequest, match="1 encoded prompts for a request of 2"):
        demo.denoise(Request(["a", "b"]), demo.encode(["a"]))
    conditioning = demo.encode(["a"])
    narrow = dataclasses.replace(conditioning, positive=(conditioning.positive[0][:, :64],))
    with pytest.raises(InvalidRequest, match="text features of width 64; demo expects 128"):
        demo.denoise(Request("a"), narrow)
    with pytest.raises(InvalidRequest, match="2 negative prompts for 1 prompts"):
        demo.encode("one text is one prompt", ["a", "b"])
    assert len(demo.encode("one text is one prompt").positive) == 1
    with pytest.raises(InvalidRequest, match="guidance 2 needs negative prompts, and none were encoded"):
        demo.denoise(Request("a", guidance=2), demo.encode(["a"]))


def test_an_encoded_picture_decodes_to_itself(demo):
    image = draw(Scene("cross", "yellow", "purple", "top left", "large"), 128, 128)
    back = demo.decode(demo.encode_image(image, 128, 128))[0]
    assert np.abs(np.asarray(back, dtype=int) - np.asarray(image, dtype=int)).mean() < 4


def test_image_to_image_keeps_the_layout_and_takes_the_new_colour(demo):
    scene = Scene("circle", "yellow", "purple", "top left", "large")
    image = draw(scene, 128, 128)
    prompt = "a large green circle in the top left on a purple background"
    outcome = check(demo.generate(Request(prompt, image=image, strength=0.85, seed=1)).images[0], prompt)
    assert outcome.place and outcome.colour and outcome.background


def test_latents_start_as_pictures_do(demo):
    image = draw(Scene("circle", "yellow", "purple", "top left", "large"), 128, 128)
    latents = demo.encode_image(image, 128, 128)
    result = demo.generate(Request("a yellow circle, purple background", latents=latents, strength=0.25))
    difference = np.abs(np.asarray(result.images[0], dtype=int) - np.asarray(image, dtype=int))
    assert np.median(difference) < 12


def test_only_the_mask_is_repainted(demo):
    image = draw(Scene("circle", "yellow", "purple", "left", "medium"), 128, 128)
    latents = demo.encode_image(image, 128, 128)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1  # the right half
    request = Request("a green star on the right", latents=latents, mask=mask)
    painted = demo.denoise(request, demo.encode(request.prompts))
    assert torch.allclose(painted[..., :8], latents[..., :8], atol=1e-5)
    assert (painted[..., 8:] - latents[..., 8:]).abs().max() > 0.5


def test_latents_of_another_model_are_refused(demo):
    with pytest.raises(InvalidRequest, match=r"\[1, 4, 16, 16\] do not belong to demo"):
        demo.generate(Request("a", latents=torch.zeros(1, 4, 16, 16)))
    with pytest.raises(InvalidRequest, match=r"its VAE takes \[pictures, 16,"):
        demo.decode(torch.zeros(1, 4, 16, 16))


def test_a_mask_of_another_size_is_refused(demo):
    image = draw(Scene("circle", "yellow", "purple", "left", "medium"), 128, 128)
    with pytest.raises(InvalidRequest, match="the mask is 128x128; at 128x128 it must be 16x16"):
        demo.generate(Request("a", image=image, mask=torch.ones(1, 1, 128, 128)))


def test_a_prompt_beyond_the_limit_is_an_error_in_tokens(demo):
    with pytest.raises(InvalidRequest, match=r"is \d{3,} tokens long .* limit is 512. Shorten it by about \d+"):
        demo.generate(Request("q7#" * 400))
    with pytest.raises(InvalidRequest, match="the negative prompt"):
        demo.generate(Request("a", "q7#" * 400, guidance=2))


def test_a_negative_prompt_without_guidance_is_said_to_have_no_effect(demo):
    with pytest.warns(CandelaWarning, match="no effect at guidance 0: z-image reads it only above 0"):
        demo.generate(Request("a red star", "blue"))


def test_nan_is_an_error_not_a_black_picture():
    engine = Engine.load("demo", device="cpu")
    with torch.no_grad():
        engine.components.transformer.layers[2].feed_forward.w2.weight[0, 0] = float("nan")
    with pytest.raises(
        GenerationError, match=r"hold 4096 NaN or infinite values of 4096 \(model in float32\).*weights are damaged"
    ):
        engine.generate(STAR)


def test_a_float16_overflow_is_told_with_its_remedy():
    engine = Engine.load("demo", dtype="float16", device="cpu")
    with torch.no_grad():
        engine.components.transformer.layers[2].feed_forward.w2.weight.fill_(60000)
        engine.components.transformer.layers[2].ffn_norm2.weight.fill_(60000)
    with pytest.raises(GenerationError, match=r"model in float16.*load it with dtype bfloat16 or float32"):
        engine.generate(STAR)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_too_little_memory_is_told_and_survived(demo, star_pixels):
    """A real allocation that really fails: 64 GB of noise under a limit of the address space."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 8 * 2**30, limits[1]))
    try:
        with pytest.raises(OutOfMemory, match=r"not enough memory on cpu: .*smaller size or fewer pictures"):
            demo.generate(Request("a", width=8192, height=8192, count=1024))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert pixels(demo.generate(STAR).images[0]) == star_pixels


def test_nan_in_the_decoder_is_an_error_too():
    engine = Engine.load("demo", device="cpu")
    with torch.no_grad():
        engine.components.vae.decoder.conv_out.bias[0] = float("inf")
    with pytest.raises(GenerationError, match="the decoded pixels hold"):
        engine.generate(STAR)


def test_bfloat16_draws_the_same_scene():
    engine = Engine.load("demo", dtype="bfloat16", device="cpu")
    assert engine.dtype == torch.bfloat16
    assert check(engine.generate(STAR).images[0], STAR.prompts[0]).ok


def test_unknown_device_and_dtype_are_named():
    with pytest.raises(InvalidRequest, match="no device 'cuda:99' here"):
        Engine.load("demo", device="cuda:99")
    with pytest.raises(InvalidRequest, match="dtype 'float8' is unknown: use float32, bfloat16, float16"):
        Engine.load("demo", dtype="float8", device="cpu")
