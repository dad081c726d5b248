"""Loading a folder in diffusers layout against diffusers itself: `python -m benchmarks.loading`.

A Z-Image of 2.1 GB in bfloat16 with random weights, saved in shards as the libraries do, from bfloat16 files and from
float32 files; each side in a fresh process, which begins to count after the imports; which comes first changes from
pair to pair. Weights that both libraries leave in the mapped file cost nothing until they are used, so there is a
second time, until each was read once. The peak is that of resident memory, beyond what there was after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.tiny import tokenizer

CASES = [("bfloat16", "bfloat16"), ("float32", "bfloat16")]  # of the files, and wanted
COMMON = """
import json, sys, time
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer, Qwen3Model
from candela.checkpoints import load_components, read_checkpoint
folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")
before, began = memory("VmRSS"), time.perf_counter()
LOAD
loaded, peak = time.perf_counter() - began, memory("VmHWM") - before
weights = [w for m in (model.transformer, model.text_encoder, model.vae) for w in m.parameters()]
assert all(w.dtype == dtype and not w.is_meta for w in weights)
for w in weights:
    w.detach().view(torch.uint8).flatten()[::4096].sum()
result = {"load": loaded, "read": time.perf_counter() - began, "peak": max(peak, memory("VmHWM") - before),
          "weights": sum(w.nbytes for w in weights)}
print(json.dumps(result))
"""
SIDES = {
    "candela": 'model = load_components(read_checkpoint(folder), device=torch.device("cpu"), dtype=dtype)',
    "diffusers": "model = DiffusionPipeline.from_pretrained(folder, dtype=dtype)",
}


def save(folder: Path, dtype: torch.dtype) -> None:
    transformer = ZImageTransformer2DModel(
        dim=1536, n_layers=12, n_refiner_layers=2, n_heads=12, n_kv_heads=12, cap_feat_dim=1280,
        axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=80_000, hidden_size=1280, intermediate_size=4864, num_hidden_layers=16, num_attention_heads=16,
            num_key_value_heads=4, head_dim=128, max_position_embeddings=4096,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=[128, 256, 512, 512], layers_per_block=2, norm_num_groups=32,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611,
    )  # fmt: skip
    for part in (transformer, text_encoder, vae):
        part.to(dtype)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=vae, text_encoder=text_encoder,
        tokenizer=tokenizer(chat=True), transformer=transformer,
    ).save_pretrained(folder, max_shard_size="500MB")  # fmt: skip


def run(side: str, folder: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-c", COMMON.replace("LOAD", SIDES[side]), str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, dtype: str, pairs: int) -> dict[str, object]:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for side in SIDES:
        run(side, folder, dtype)  # the files are in the system's cache from now on
    for pair in range(pairs):
        for side in SIDES if pair % 2 else reversed(SIDES):
            runs[side].append(run(side, folder, dtype))
            print(f"{side:10}", {k: round(v, 3) for k, v in runs[side][-1].items()}, file=sys.stderr, flush=True)

    def median(side: str, what: str) -> float:
        return statistics.median(one[what] for one in runs[side])

    return {
        "median seconds": {side: round(median(side, "load"), 3) for side in SIDES},
        "ratio": round(median("candela", "load") / median("diffusers", "load"), 3),
        "ratio until every weight was read": round(median("candela", "read") / median("diffusers", "read"), 3),
        "peak as a part of the weights": {
            side: round(max(one["peak"] / one["weights"] for one in runs[side]), 3) for side in SIDES
        },
        "seconds": {side: [round(one["load"], 3) for one in runs[side]] for side in SIDES},
        "GB of weights": round(median("candela", "weights") / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (default: the system's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loading.json")
    args = parser.parse_args()
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, CPU only",
        "load before": round(os.getloadavg()[0], 2),
        "pairs": args.pairs,
    }
    for stored, wanted in CASES:
        with tempfile.TemporaryDirectory(dir=args.folder) as place:
            save(Path(place) / "model", getattr(torch, stored))
            os.sync()
            result[f"{stored} files into {wanted}"] = compare(Path(place) / "model", wanted, args.pairs)
    text = json.dumps(result, indent=1)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
