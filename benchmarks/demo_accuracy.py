"""How often the demo model draws what it was asked for: `make check-demo`.

Prompts whose (shape, colour, background) triples were never trained on, judged from pixels by
`candela.demo.check`; then the same pictures against shuffled prompts, as a control that must fail.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

from candela import Engine, Request
from candela.demo import SHAPES, SIZES, Check, Scene, check, held_out_prompts

BATCH = 10
OTHER_SIZES = [(96, 96), (160, 160), (192, 128)]


def pictures(engine: Engine, prompts: list[tuple[str, Scene]], width: int, height: int, seed: int) -> list:
    images = []
    for first in range(0, len(prompts), BATCH):
        texts = [text for text, _ in prompts[first : first + BATCH]]
        images += engine.generate(Request(texts, width=width, height=height, seed=seed + first)).images
    return images


def share(checks: list[Check], test: Callable[[Check], bool]) -> float:
    return sum(map(test, checks)) / len(checks)


def measure(engine: Engine, number: int, others: int, seed: int) -> dict:
    prompts = held_out_prompts(number, seed)
    images = pictures(engine, prompts, 128, 128, seed)
    checks = [check(image, scene) for image, (_, scene) in zip(images, prompts)]
    figures: dict = {
        "128x128": {
            "prompts": number,
            "colour and background": share(checks, lambda c: c.colour and c.background),
            "shape class": share(checks, lambda c: c.shape),
            "shape strict": share(checks, lambda c: c.strict),
            "place": share(checks, lambda c: c.place),
            "size": share(checks, lambda c: c.size),
            "one shape": share(checks, lambda c: c.shapes == 1),
            "all": share(checks, lambda c: c.ok),
        },
        "strict by shape": {s: share([c for c in checks if c.expected.shape == s], lambda c: c.strict) for s in SHAPES},
        "strict by size": {s: share([c for c in checks if c.found.size == s], lambda c: c.strict) for s in SIZES},
    }
    others_first = random.Random(seed).sample(prompts, number)
    shuffled = [check(image, scene) for image, (_, scene) in zip(images, others_first)]
    figures["control, prompts shuffled"] = {"all": share(shuffled, lambda c: c.ok)}
    for width, height in OTHER_SIZES:
        subset = held_out_prompts(others, seed + 1)
        found = [check(i, scene) for i, (_, scene) in zip(pictures(engine, subset, width, height, seed), subset)]
        figures[f"{width}x{height}"] = {
            "prompts": others,
            "colour and background": share(found, lambda c: c.colour and c.background),
            "one shape": share(found, lambda c: c.shapes == 1),
            "shape class": share(found, lambda c: c.shape),
            "all": share(found, lambda c: c.ok),
        }
    figures["seconds a picture"] = {"warm, one at a time": round(seconds_a_picture(engine), 3)}
    return figures


def seconds_a_picture(engine: Engine, runs: int = 9) -> float:
    times = []
    for k in range(runs + 1):
        began = time.perf_counter()
        engine.generate(Request("a red star on a blue background", seed=k))
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="name or folder")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--others", type=int, default=100, help="prompts at each other size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(Engine.load(args.model), args.prompts, args.others, args.seed)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for group, values in figures.items():
        print(f"\n{group}")
        for name, value in values.items():
            shown = f"{100 * value:6.1f} %" if isinstance(value, float) and "second" not in group else f"{value:>6}"
            print(f"  {name:24}{shown}")
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
