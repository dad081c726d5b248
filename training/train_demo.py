"""Trains the embedded demo model from nothing: `make train-demo`.

Stages: autoencoder, pictures encoded once, tokenizer, transformer with text encoder, export
into the package. Each leaves its outcome in the work folder; `--resume` starts after the last
one that finished. One seed decides everything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

# Two threads that wait politely: spinning costs a shared machine more than it gains here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from diffusers import AutoencoderKL
from transformers import PreTrainedTokenizerFast

from training import data, export, text, transformer, vae

VAE_STEPS = 2600
STEPS = 7000
PICTURES = {size: 12288 if size == (128, 128) else 3072 for size in data.BUCKETS}


def log(message: str) -> None:
    print(time.strftime("%H:%M:%S"), message, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="where stages leave their outcome")
    parser.add_argument("--out", type=Path, default=Path("src/candela/demo/model"), help="the model's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--resume", action="store_true", help="keep the stages that finished")
    args = parser.parse_args()
    if not args.resume:
        shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}

    started = time.time()
    if not (args.work / "vae").is_dir():
        vae.train(VAE_STEPS, args.seed, log).save_pretrained(args.work / "vae")
    autoencoder = AutoencoderKL.from_pretrained(args.work / "vae").eval()
    times["autoencoder"] = time.time() - started

    started = time.time()
    if not (args.work / "latents.pt").is_file():
        torch.save(transformer.encode_pictures(autoencoder, PICTURES, args.seed + 1, log), args.work / "latents.pt")
    sets, shift, scale = torch.load(args.work / "latents.pt", weights_only=False)
    times["pictures"] = time.time() - started

    if not (args.work / "tokenizer").is_dir():
        text.train_tokenizer(args.seed).save_pretrained(args.work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer")

    def save(step, model, text_encoder):
        torch.save({"step": step, "transformer": model.state_dict(), "text_encoder": text_encoder.state_dict()},
                   args.work / "averages.pt")  # fmt: skip

    started = time.time()
    if not (args.work / "transformer.done").is_file():
        transformer.train(sets, tokenizer, args.steps, args.seed, log, on_checkpoint=save)
        (args.work / "transformer.done").touch()
    times["transformer and text encoder"] = time.time() - started
    export.write_model(args.work, args.out, shift, scale)
    log(f"wrote {args.out}; minutes: {json.dumps({k: round(v / 60, 1) for k, v in times.items()})}")


if __name__ == "__main__":
    main()
