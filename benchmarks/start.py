"""From the command to the picture: `python -m benchmarks.start`.

`candela generate` with the embedded model against the shortest diffusers script that draws the same picture, each a
fresh process from its start to its end; which comes first changes from pair to pair. Beside the time on the clock
there is the processors' time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from candela.checkpoints import find

PROMPT = "a red star"
PLAIN = """
import sys
import torch
from diffusers import ZImagePipeline
pipeline = ZImagePipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
image = pipeline(
    sys.argv[2], num_inference_steps=8, guidance_scale=0, height=128, width=128, generator=generator
).images[0]
image.save(sys.argv[3])
"""


def run(command: list[str]) -> tuple[float, float]:
    """-> seconds on the clock, seconds of all processors."""
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def measure(folder: Path, pairs: int) -> dict[str, object]:
    candela = str(Path(sys.executable).parent / "candela")
    pictures = {"candela": folder / "candela.png", "diffusers": folder / "diffusers.png"}
    commands = {
        "candela": [candela, "generate", PROMPT, "--out", str(pictures["candela"])],
        "diffusers": [sys.executable, "-c", PLAIN, str(find("demo").folder), PROMPT, str(pictures["diffusers"])],
    }
    runs: dict[str, list[tuple[float, float]]] = {side: [] for side in commands}
    load, difference = os.getloadavg()[0], 0
    for pair in range(pairs + 1):
        for side in commands if pair % 2 else reversed(commands):
            result = run(commands[side])
            if pair:  # the first only brings the files into the system's cache
                runs[side].append(result)
            print(f"{side:10} {result[0]:6.2f} s, {result[1]:6.2f} s of processors", file=sys.stderr, flush=True)
        ours, theirs = (np.asarray(Image.open(path).convert("RGB"), int) for path in pictures.values())
        difference = max(difference, int(np.abs(ours - theirs).max()))
        for path in pictures.values():
            path.unlink()

    def median(side: str, which: int) -> float:
        return statistics.median(one[which] for one in runs[side])

    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load before": round(load, 2),
        "pairs": pairs,
        "median seconds": {side: round(median(side, 0), 2) for side in commands},
        "ratio": round(median("candela", 0) / median("diffusers", 0), 3),
        "ratio of the processors' time": round(median("candela", 1) / median("diffusers", 1), 3),
        "seconds": {side: [round(one[0], 2) for one in runs[side]] for side in commands},
        "largest pixel difference of 255": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        text = json.dumps(measure(Path(place), args.pairs), indent=1)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
