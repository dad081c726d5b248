"""Memory that really runs out: children under a limit of the system's (RLIMIT_DATA), in which allocations fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from benchmarks import memory
from candela import Engine, OutOfMemory, Request
from candela.checkpoints import read_checkpoint
from candela.engine.ladder import Placement, Rung, below
from candela.engine.planning import measured
from candela.engine.sharing import Room
from candela.families import family_of
from tests import tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and their counts are Linux's")

CHILD = """
import gc, hashlib, json, resource, sys, threading, warnings
from dataclasses import replace
from candela import Engine, Request
from candela.engine.heap import own_process, trim

def data():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData:"))

def picture(out, key, model, request, rounds=1, kept=0):
    try:
        engine = Engine.load(model, device="cpu", dtype="float32", placement="streamed" if kept else "resident")
        engine.residency.rung = replace(engine.residency.rung, kept=kept)
        for _ in range(rounds):
            image = engine.generate(request).images[0]
        out[key] = str(engine.residency.rung), hashlib.sha256(image.tobytes()).hexdigest()
    except Exception as error:
        out[key] = type(error).__name__, str(error)

def limited(limit):
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_DATA, (data() + limit if limit else unlimited, unlimited))

own_process()
Engine.load("demo", device="cpu").generate(Request("a red star", steps=1))  # everything is imported and has run
model, jobs = sys.argv[1], json.loads(sys.argv[2])
answers = []
for side, limit, threads, *kept in jobs:
    gc.collect()
    trim()  # what was freed is no room beside the limit
    out = {}
    request = Request("a red star", width=side, height=side, steps=1)
    limited(limit)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if threads == 1:
            picture(out, 0, model, request, 1, *kept)
        else:
            workers = [threading.Thread(target=picture, args=(out, k, model, request, 2)) for k in range(threads)]
            [worker.start() for worker in workers]
            [worker.join(100) for worker in workers]
    limited(0)
    answers.append([out.get(k, ("hung", "")) for k in range(threads)] + [[str(one.message) for one in told]])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """58 MB of transformer, 45 of text encoder, a VAE that takes 150 MB for 512x512."""
    folder = tmp_path_factory.mktemp("ladder") / "model"
    transformer = ZImageTransformer2DModel(
        dim=384, n_layers=6, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=384,
        axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=8000, hidden_size=384, intermediate_size=1152, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024,
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=[32, 32, 64, 64], layers_per_block=1, norm_num_groups=16,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, use_quant_conv=False,
        use_post_quant_conv=False, mid_block_add_attention=False, shift_factor=0.1159, scaling_factor=0.3611,
        sample_size=1024,
    )  # fmt: skip
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.randomize(vae, 1, std=0.1).bfloat16(),
        text_encoder=Qwen3Model(text).bfloat16(),
        tokenizer=tiny.tokenizer(chat=True),
        transformer=tiny.randomize(transformer, 3, std=0.02).bfloat16(),
    ).save_pretrained(folder)
    return folder


def peaks(model: Path, side: int) -> dict[str, int]:
    """What the plan says, by rung."""
    from candela.engine.cards import Machine

    checkpoint = read_checkpoint(model)
    known = measured(checkpoint, family_of(checkpoint), torch.float32, "cpu", (side, side))
    machine = Machine("", "cpu", 0, 0, 1e12, 1e10, 1e9)
    rungs = [Rung(placement, tiled) for placement in Placement for tiled in (False, True)]
    return {str(rung): max(stage.peak for stage in known.stages(rung, machine)) for rung in rungs}


def test_each_rung_is_taken_one_at_a_time_and_the_picture_is_the_same(model):
    small, large = peaks(model, 128), peaks(model, 768)
    jobs = [
        (128, 20_000_000, 1),
        (128, 0, 1),
        (128, (small["resident"] + small["released"]) // 2, 1),
        (128, (small["released"] + small["streamed"]) // 2, 1),
        (128, (small["released"] + small["streamed"]) // 2, 1, 8),
        (768, 0, 1),
        (768, (large["resident"] + 2 * large["resident, tiled decoding"]) // 3, 1),
        (128, small["resident"] * 13 // 10, 2),
    ]  # fmt: skip
    command = [sys.executable, "-c", CHILD, str(model), json.dumps(jobs)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # libgomp ends a process that cannot start its threads
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=alone)
    assert run.returncode == 0, run.stderr
    nothing, free, released, streamed, kept, large_free, tiled, two = json.loads(run.stdout.splitlines()[-1])
    assert free[0][0] == "resident"
    assert not free[1]
    assert released[0] == ["released", free[0][1]]
    assert streamed[0] == ["streamed", free[0][1]]
    assert [" to released: " in streamed[1][0], " to streamed: " in streamed[1][1]] == [True, True]
    assert kept[0] == ["streamed", free[0][1]]
    assert len(kept[1]) == 1 and "from streamed but for 8 blocks to streamed: " in kept[1][0], kept[1]
    assert "could not be had" in streamed[1][0] and "the picture is the same" in streamed[1][0]
    assert nothing[0][0] == "OutOfMemory" and "smaller size" in nothing[0][1] and "streamed" in nothing[0][1]
    assert tiled[0][0] == "resident, tiled decoding", tiled
    assert "faint differences" in tiled[1][0]
    assert tiled[0][1] != large_free[0][1]  # tiles differ a little, and so it was really tiled
    first, second, _ = two
    assert first[1] == second[1] == free[0][1], two


def test_the_peak_of_a_real_process_is_within_a_tenth(model):
    """As benchmarks/memory.py does for larger ones; streamed, where weights hide no error of the work."""
    found = memory.measured(model, 512, 512, "streamed")["measured"]
    assert peaks(model, 512)["streamed"] == pytest.approx(found, rel=0.1)


def test_the_ladder_has_five_steps_and_an_end():
    rung, steps = Rung(), []
    for stage in ("decode", "decode", "decode", "decode"):
        rung = below(rung, stage, 1024**2) if rung else None
        steps.append(str(rung))
    assert steps == ["resident, tiled decoding", "released, tiled decoding", "streamed, tiled decoding", "None"]
    assert below(Rung(Placement.STREAMED), "denoise") is None
    assert below(Rung(Placement.STREAMED, kept=5), "denoise") == Rung(Placement.STREAMED)
    assert below(Rung(Placement.STREAMED, kept=5), "encode") is None  # no block of the transformer is there
    assert below(Rung(Placement.STREAMED), "decode", 1024**2) == Rung(Placement.STREAMED, tiled=True)
    assert below(Rung(), "decode", 512**2) == Rung(Placement.RELEASED)  # one tile is the whole picture


@pytest.mark.parametrize("placement", ["released", "streamed"])
@pytest.mark.parametrize("family", ["z-image", "lumina-image-2", "lumina-next"])
def test_every_placement_gives_the_same_picture(tiny_models, family, placement):
    requests = [
        Request(prompt, width=64, height=64, steps=2) for prompt in ("a red star", "a blue circle", "a red star")
    ]
    there, placed = (Engine.load(tiny_models[family], placement=name, device="cpu") for name in ("resident", placement))
    for request in requests:
        assert there.generate(request).images[0].tobytes() == placed.generate(request).images[0].tobytes()


def test_what_is_away_takes_no_memory_and_is_not_computed_with(tiny_models):
    engine = Engine.load(tiny_models["z-image"], placement="released", device="cpu")
    engine.encode(["a red star"])
    transformer = engine.components.transformer
    assert all(p.isnan().all() and p.untyped_storage().nbytes() <= 4 for p in transformer.layers.parameters())
    assert not any(p.isnan().any() for p in engine.components.text_encoder.parameters())


def test_an_engine_in_others_hands_has_no_ladder(tiny_models):
    class Hands:
        def need(self, component, pixels=0):
            raise OutOfMemory("theirs")

        def need_all(self, pixels=0): ...

    engine = Engine.load(tiny_models["z-image"], residency=lambda components: Hands(), device="cpu")
    with pytest.raises(OutOfMemory, match=r"^theirs$"):
        engine.encode(["a red star"])


def test_two_that_wait_to_be_alone_take_turns():
    import threading

    room, order = Room(), []
    barrier = threading.Barrier(2)

    def stage(name):
        with room.shared():
            barrier.wait(10)
            with room.alone():
                order.append((name, "in"))
                order.append((name, "out"))

    threads = [threading.Thread(target=stage, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join(10) for thread in threads]
    assert [what for _, what in order] == ["in", "out"] * 2 and order[0][0] == order[1][0]
