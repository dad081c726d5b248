"""Noise to latents: the denoising loop, and what a caller sees of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from candela.engine.pace import Pace
from candela.errors import Cancelled, GenerationError
from candela.families import Predictor

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step of a run, as the step callback gets it. On CUDA the next one is at work by then.

    Attributes:
        index, steps: 1-based, of how many.
        seconds: this step took on the device.
        denoised: the model's present estimate of the finished latents, float32 [B, C, h, w] in its own scale.
    """

    index: int
    steps: int
    seconds: float
    denoised: torch.Tensor
    _preview: Callable[[torch.Tensor], list[Image.Image]]

    def preview(self, pictures: int | None = None) -> list[Image.Image]:
        """What the first `pictures` of the batch look like by now, without it all of them: small ones, a pixel for each
        latent, from a linear reading of the latents, or whole ones where TAEF1 is installed (docs/memory.md says what
        that takes)."""
        return self._preview(self.denoised[:pictures])


OnStep = Callable[[Step], None]


@dataclass(frozen=True, eq=False)
class Start:
    """What an image-to-image run begins from, in the model's scale: latents [B, C, h, w], and where to
    repaint them: mask [B or 1, 1, h, w] with 1 = repaint, or None for everywhere."""

    latents: torch.Tensor
    mask: torch.Tensor | None = None


def noise_for(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise [len(seeds), *shape], float32 on the CPU, each picture from its own generator."""
    noise = torch.empty((len(seeds), *shape), dtype=torch.float32)  # at once: too much fails before any work
    for picture, seed in zip(noise, seeds):
        torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), out=picture)
    return noise


def denoise(
    predict: Predictor,
    scheduler: Any,
    noise: torch.Tensor,
    *,
    start: Start | None = None,
    first: int = 0,
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] | None = None,
    preview: Callable[[torch.Tensor], list[Image.Image]],
) -> torch.Tensor:
    """Walks `scheduler.timesteps[first:]` from noise, or from `start` with noise on it, to latents.

    `noise` is float32 [B, C, h, w] on the model's device; so is what is returned, in the model's scale.

    Raises:
        Cancelled: `cancelled()` was true before a step.
    """
    pace = Pace(noise.device)

    def told(tell: OnStep, index: int, denoised: torch.Tensor) -> Callable[[float], None]:
        return lambda seconds: tell(Step(index, len(timesteps), seconds, denoised, preview))

    timesteps = scheduler.timesteps[first:]
    scheduler.set_begin_index(first)
    latents = noise if start is None else noised(start.latents, noise, scheduler.sigmas[first])
    for index, timestep in enumerate(timesteps):
        if cancelled is not None and cancelled():
            raise Cancelled(index - pace.queued, len(timesteps))
        pace.begin()
        velocity = predict(latents, timestep)
        before = latents
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if start is not None and start.mask is not None:
            kept = start.latents
            if index + 1 < len(timesteps):
                kept = noised(kept, noise, scheduler.sigmas[first + index + 1])
            latents = start.mask * latents + (1 - start.mask) * kept
        pace.end(told(on_step, index + 1, before - timestep / 1000 * velocity) if on_step else lambda seconds: None)
    pace.finish()
    return latents


def noised(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Where the straight way from `latents` to `noise` is at `sigma`, 0 to 1, a scalar (https://arxiv.org/abs/2210.02747).
    As the scheduler's `scale_noise` has it, which looks sigma up by indices that the device has to wait for."""
    return sigma * noise + (1.0 - sigma) * latents


def check_finite(values: torch.Tensor, what: str, dtype: torch.dtype) -> None:
    """
    Raises:
        GenerationError: NaN or infinite values, with what to do for a model of `dtype`.
    """
    if bad := int((~torch.isfinite(values)).sum()):
        cause = (
            "float16 overflows in this model: load it with dtype bfloat16 or float32"
            if dtype == torch.float16
            else "the usual cause is an overflow in float16, but this model is not in float16, so its weights are "
            "damaged: download them again"
        )
        raise GenerationError(
            f"{what} hold {bad} NaN or infinite values of {values.numel()} (model in "
            f"{str(dtype).removeprefix('torch.')}), so there is no picture: {cause}"
        )
