"""The engine against the bare diffusers pipeline, on the demo model: `make bench`.

Same weights, prompts, seeds and steps; alternating in one process after a warm-up; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
from diffusers import ZImagePipeline

from candela import Engine, Request
from candela.checkpoints import find

PROMPT = "a large red star in the top left corner on a blue background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pipeline = ZImagePipeline.from_pretrained(find("demo").folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    engine = Engine.load("demo")

    def bare(seed: int):
        return pipeline(
            PROMPT, width=128, height=128, num_inference_steps=8, guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]  # fmt: skip

    def ours(seed: int):
        return engine.generate(Request(PROMPT, seed=seed)).images[0]

    times: dict[str, list[float]] = {"bare": [], "engine": []}
    difference = 0
    for seed in range(args.runs + 2):
        pictures = []
        sides = [("bare", bare), ("engine", ours)]
        for name, side in sides if seed % 2 else sides[::-1]:
            began = time.perf_counter()
            pictures.append(np.asarray(side(seed), dtype=int))
            if seed >= 2:
                times[name].append(time.perf_counter() - began)
        difference = max(difference, int(np.abs(pictures[0] - pictures[1]).max()))
    medians = {name: statistics.median(values) for name, values in times.items()}
    outcome = {
        "runs": args.runs,
        "threads": torch.get_num_threads(),
        "median seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["engine"] / medians["bare"], 3),
        "largest pixel difference of 255": difference,
    }
    if args.json:
        print(json.dumps(outcome))
    else:
        for name, value in outcome.items():
            print(f"{name:34}{value}")


if __name__ == "__main__":
    main()
