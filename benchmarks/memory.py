"""Predicted against measured peak memory on the CPU: six sizes x three placements, each in a process of its own.

    python -m benchmarks.memory [SIZE ...]

A random Z-Image of 126 million parameters (and a text encoder of 107 million, an autoencoder of 21 million), stored in
bfloat16 and computed in float32, so that its weights are read into memory and not mapped. Measured is the highest
resident memory of a process (VmHWM) over what it had with everything imported, from loading to the decoded picture, two
steps. Linux only. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = ("256x256", "384x384", "512x512", "512x768", "768x768", "1024x1024")
RESULTS = Path(__file__).parent / "results" / "memory.json"

CHILD = """
import json, sys, torch
from candela import Engine, Request
from candela.engine.heap import own_process
from candela.engine.measuring import PROMPT

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

model, width, height, placement = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
own_process()
Engine.load("demo").generate(Request("a red star", steps=1))  # everything is imported and has run
import gc
gc.collect()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # proc(5): VmHWM begins anew
engine = Engine.load(model, device="cpu", dtype="float32", placement=placement)
result = engine.generate(Request(PROMPT, width=width, height=height, steps=2))
print(json.dumps({"measured": status("VmHWM") - before, "seconds": result.seconds.total}))
"""


def make_model(folder: Path) -> Path:
    """Random weights; the same classes and layout as the published model."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    from candela.checkpoints.catalogue import DEMO_FOLDER

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        dim=768, n_layers=12, n_refiner_layers=2, n_heads=6, n_kv_heads=6, cap_feat_dim=768,
        axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    text = Qwen3Config(
        vocab_size=32000, hidden_size=768, intermediate_size=2304, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=1024,
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=[64, 128, 256, 256], layers_per_block=2, sample_size=1024,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611, force_upcast=False,
    )  # fmt: skip
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.bfloat16(),
        text_encoder=Qwen3Model(text).bfloat16(),
        tokenizer=AutoTokenizer.from_pretrained(DEMO_FOLDER / "tokenizer"),
        transformer=transformer.bfloat16(),
    ).save_pretrained(folder)
    return folder


def measured(model: Path, width: int, height: int, placement: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(model), str(width), str(height), placement]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def cells(model: Path, size: str) -> Iterator[dict[str, Any]]:
    import torch

    from candela.checkpoints import read_checkpoint
    from candela.engine import planning
    from candela.engine.cards import Machine
    from candela.engine.ladder import Placement, Rung
    from candela.families import family_of

    width, height = map(int, size.split("x"))
    checkpoint = read_checkpoint(model)
    known = planning.measured(checkpoint, family_of(checkpoint), torch.float32, "cpu", (width, height))
    for placement in Placement:
        stages = known.stages(Rung(placement), Machine("", "cpu", 0, 0, 1, 1, 1))
        worst = max(stages, key=lambda stage: stage.peak)
        found = measured(model, width, height, placement.value)
        yield {
            "size": size,
            "placement": placement.value,
            "predicted_mb": round(worst.peak / 1e6, 1),
            "measured_mb": round(found["measured"] / 1e6, 1),
            "ratio": round(worst.peak / found["measured"], 3),
            "seconds": round(found["seconds"], 1),
            "worst_stage": worst.name,
        }


def main() -> None:
    import torch

    sizes = sys.argv[1:] or SIZES
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        table = []
        for size in sizes:
            for one in cells(model, size):
                table.append(one)
                print(*one.values(), sep="\t", flush=True)
    worst = max(abs(one["ratio"] - 1) for one in table)
    report = {
        "worst_error": round(worst, 3),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cells": table,
    }
    print(f"worst error {worst:.1%}")
    if not sys.argv[1:]:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
