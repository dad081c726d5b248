"""What a preview per step costs: `python -m benchmarks.previews`.

The demo with a random transformer of 100 million parameters at 512x512, sampled with and without a preview
after every step (JPEG included, as ComfyUI sends it), alternating in one process after a warm-up; medians.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time

import torch
from diffusers import ZImageTransformer2DModel

from candela import Engine, Request, Step
from candela.checkpoints import Components

LARGER = {"dim": 768, "n_heads": 24, "n_kv_heads": 24, "n_layers": 9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    engine = Engine.load("demo")
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel.from_config({**engine.components.transformer.config, **LARGER})
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:  # uninitialised memory otherwise
            torch.nn.init.zeros_(parameter)
    transformer = transformer.to(engine.device, engine.dtype).eval().requires_grad_(False)
    engine.components = Components({**engine.components.by_name, "transformer": transformer})
    request = Request("a red star", width=args.size, height=args.size, steps=4)
    conditioning = engine.encode(request.prompts)

    def preview(step: Step) -> None:
        step.preview()[0].resize((512, 512)).save(io.BytesIO(), "JPEG")

    times: dict[str, list[float]] = {"without": [], "with": []}
    for run in range(args.runs + 1):
        sides = [("without", None), ("with", preview)]
        for name, on_step in sides if run % 2 else sides[::-1]:
            began = time.perf_counter()
            engine.denoise(request, conditioning, on_step=on_step)
            if run:
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        json.dumps(
            {
                "runs": args.runs,
                "size": args.size,
                "parameters": sum(p.numel() for p in transformer.parameters()),
                "median seconds": {name: round(value, 3) for name, value in medians.items()},
                "ratio": round(medians["with"] / medians["without"], 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
