"""What fast mode costs in accuracy, and what its kept weights save: `python -m benchmarks.fast`.

The demo model draws the same prompts, never trained on, exact and in each kind of 8-bit numbers, judged from pixels;
then bytes of the transformer that a first and a second start read. Speed is a GPU's affair: `candela bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel

from benchmarks.demo_accuracy import pictures, share
from candela import Engine
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import check, held_out_prompts
from candela.engine.fast import KINDS
from candela.engine.fast.weights import ROUNDED

RESULTS = Path(__file__).parent / "results" / "fast.json"


def accuracy(number: int, seed: int) -> dict[str, dict[str, float]]:
    """By mode the checker's shares, and how far pictures are from those of exact mode, in 255ths."""
    prompts = held_out_prompts(number, seed)
    figures: dict[str, dict[str, float]] = {}
    exact: list[np.ndarray] = []
    kinds: list[bool | str] = [False, *KINDS]
    for kind in kinds:
        images = pictures(Engine.load("demo", fast=kind), prompts, 128, 128, seed)
        checks = [check(image, scene) for image, (_, scene) in zip(images, prompts)]
        arrays = [np.asarray(image, np.float32) for image in images]
        exact = exact or arrays
        figures[f"fast {kind}" if kind else "exact"] = {
            "all": share(checks, lambda c: c.ok),
            "shape class": share(checks, lambda c: c.shape),
            "shape strict": share(checks, lambda c: c.strict),
            "colour and background": share(checks, lambda c: c.colour and c.background),
            "mean difference": round(float(np.mean([np.abs(a - b).mean() for a, b in zip(arrays, exact)])), 3),
        }
        print(f"fast {kind}" if kind else "exact", json.dumps(list(figures.values())[-1]), flush=True)
    return figures


def starts() -> dict[str, dict[str, float]]:
    """By kind of numbers: bytes of the demo's transformer as it ships and as it is kept, and seconds of both loads."""
    source = sum(file.stat().st_size for file in (DEMO_FOLDER / "transformer").glob("*.safetensors"))
    figures = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as place:
            os.environ["CANDELA_HOME"] = place
            seconds = []
            for _ in range(2):
                began = time.perf_counter()
                Engine.load("demo", fast=kind)
                seconds.append(round(time.perf_counter() - began, 3))
            (kept,) = Path(place).rglob("*.safetensors")
            figures[kind] = {
                "bytes as it ships (bfloat16)": source,
                "bytes as kept": kept.stat().st_size,
                "of float32": round(kept.stat().st_size / (2 * source), 3),
                "seconds, first": seconds[0],
                "seconds, second": seconds[1],
            }
    return figures


def full_size() -> dict[str, float]:
    """Z-Image's own sizes, from shapes alone: parameters rounded, and bytes kept as a part of bfloat16's."""
    with torch.device("meta"):
        model = ZImageTransformer2DModel()
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    matrices = [shape for name, shape in sizes.items() if ROUNDED.search(name) and len(shape) == 2]
    total, rounded = (sum(shape.numel() for shape in shapes) for shapes in (sizes.values(), matrices))
    kept = rounded + sum(4 * shape[0] for shape in matrices) + 2 * (total - rounded)
    return {"parameters": total, "rounded": round(rounded / total, 4), "bytes kept": round(kept / (2 * total), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    figures = {
        "prompts": args.prompts,
        "accuracy": accuracy(args.prompts, args.seed),
        "starts": starts(),
        "full size": full_size(),
        "torch": torch.__version__,
    }
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps({key: figures[key] for key in ("starts", "full size")}, indent=2))
    print(RESULTS)


if __name__ == "__main__":
    main()
