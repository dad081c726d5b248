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

# Threads that wait for each other a little, then sleep: to sleep at once costs half the speed, and to
# spin for milliseconds stops everything whenever another program wants a core.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch
from diffusers import AutoencoderKL
from transformers import PreTrainedTokenizerFast

from training import data, export, text, transformer, vae

VAE_STEPS = 2600
DECODER_STEPS = 1600
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
        autoencoder = vae.sharpen(vae.train(VAE_STEPS, args.seed, log), DECODER_STEPS, args.seed + 2, log)
        autoencoder.save_pretrained(args.work / "vae")
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

    started = time.time()
    model, text_encoder = transformer.train(sets, tokenizer, args.steps, args.seed, args.work / "transformer.pt", log)
    times["transformer and text encoder"] = time.time() - started
    export.write_model(args.out, autoencoder, tokenizer, model, text_encoder, shift, scale)
    log(f"wrote {args.out}; minutes: {json.dumps({k: round(v / 60, 1) for k, v in times.items()})}")


if __name__ == "__main__":
    main()
