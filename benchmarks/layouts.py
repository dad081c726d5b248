"""What each layout and precision costs: `python -m benchmarks.layouts`.

The demo model is exported to every layout and draws prompts that it was never trained on, judged from pixels; then a
transformer of 500 million random parameters is loaded from bfloat16 and from GGUF, for the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.demo_accuracy import pictures, share
from candela import Engine
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.demo import check, held_out_prompts

LAYOUTS = ["all-in-one", "bf16", "fp8", "scaled-fp8", "comfy-fp8", "int8", "Q8_0", "Q5_K", "Q4_0", "nvfp4"]
# 500 million parameters in matrices that every quantisation can take.
LARGE = {"dim": 1536, "n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "cap_feat_dim": 512, "axes_dims": [32, 48, 48],
         "axes_lens": [1536, 512, 512], "n_refiner_layers": 2}  # fmt: skip
PEAK = """
import sys, torch
from candela.checkpoints.filling import build
from candela.checkpoints.opening import parts_at
from candela.families import FAMILIES, Conditioning
from candela.checkpoints import Components
import diffusers
part = parts_at(sys.argv[1])["transformer"]
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
torch.zeros(8, 8) @ torch.zeros(8, 8)
before = peak()
module = build(part.found, device=torch.device("cpu"), dtype=torch.bfloat16).eval()
loaded = peak()
conditioning = Conditioning(("x",), (torch.zeros(20, part.config["cap_feat_dim"]),))
with torch.no_grad():
    predict = FAMILIES[0].predictor(Components({"transformer": module}), conditioning, 0.0, torch.Size((1, 16, 32, 32)))
    predict(torch.zeros(1, 16, 32, 32), torch.tensor(700.0))
print(before, loaded, peak(), sum(p.numel() for p in module.parameters()))
"""


def accuracy(layout: str, number: int, folder: Path) -> dict[str, float]:
    from tests import layouts

    engine = Engine.load(layouts.export(DEMO_FOLDER, folder / layout, "z-image", layout))
    prompts = held_out_prompts(number, 11)
    checks = [check(image, scene) for image, (_, scene) in zip(pictures(engine, prompts, 128, 128, 11), prompts)]
    return {
        "all": share(checks, lambda c: c.ok),
        "shape class": share(checks, lambda c: c.shape),
        "colour and background": share(checks, lambda c: c.colour and c.background),
    }


def peaks(folder: Path) -> dict[str, dict[str, int]]:
    """Megabytes above the process with its libraries imported: after loading, and after one step at 256x256."""
    import torch
    from diffusers import ZImageTransformer2DModel

    from tests import layouts, tiny

    torch.manual_seed(0)
    model = tiny.randomize(ZImageTransformer2DModel(**LARGE), 1, 0.02).bfloat16()
    tensors = layouts.z_image(dict(model.state_dict()))
    files = {"bf16": layouts.write_safetensors(folder / "z_image_turbo.safetensors", tensors)}
    for kind in ("Q8_0", "Q4_0"):
        files[kind] = layouts.write_gguf(folder / f"z_image_turbo_{kind}.gguf", "lumina2", tensors, kind)
    del model, tensors
    result = {}
    for kind, path in files.items():
        run = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
        before, loaded, stepped, _ = map(float, run.stdout.split())
        result[kind] = {
            "file": round(path.stat().st_size / 2**20),
            "loaded": round(loaded - before),
            "after a step": round(stepped - before),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--only", choices=["accuracy", "memory"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if args.only != "memory":
            for layout in LAYOUTS:
                print(f"{layout:12}", json.dumps(accuracy(layout, args.prompts, Path(place))), flush=True)
        if args.only != "accuracy":
            for kind, figures in peaks(Path(place)).items():
                print(f"{kind:12}", json.dumps(figures), "MiB", flush=True)


if __name__ == "__main__":
    main()
