"""The engine for pipelines that run whole: the same stages, around diffusers' own loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch

from candela.engine import memory, sampling
from candela.engine.attempts import on_ladder
from candela.engine.engine import Engine
from candela.engine.pace import Pace
from candela.engine.request import Request
from candela.engine.sampling import OnStep, Step
from candela.engine.tiling import tiling
from candela.errors import Cancelled, CandelaWarning, InvalidRequest
from candela.families import Conditioning
from candela.families.decoders import decode, decoder_of, latent_channels
from candela.families.generic import Generic, Texts

if TYPE_CHECKING:
    from PIL import Image


class WholePipelineEngine(Engine):
    """Drives a `Generic` family. Pictures of a batch are made one after the other."""

    @property
    def latent_channels(self) -> int:
        return latent_channels(decoder_of(self.components.by_name))

    @property
    def _generic(self) -> Generic:
        return cast("Generic", self.family)

    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        """The texts themselves: a whole pipeline encodes them when it runs."""
        checked = Request(prompts, negative_prompts)
        return self.family.encode(self.components, checked.prompts, checked.negatives)

    @on_ladder("denoise")
    def denoise(
        self,
        request: Request,
        conditioning: Conditioning,
        *,
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> torch.Tensor:
        """Texts to raw VAE latents, float32 [pictures, C, h, w]; a pipeline without a VAE gives its pixels.

        Raises:
            InvalidRequest, GenerationError, Cancelled: as `generate`.
        """
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            full = self._resolved(request)
            assert full.width and full.height and full.steps and full.guidance is not None
            if not isinstance(conditioning, Texts) or len(conditioning.prompts) != len(full.prompts):
                raise InvalidRequest(
                    f"{len(conditioning.prompts)} prompts encoded with {type(conditioning).__name__} for a request of "
                    f"{len(full.prompts)}: encode the request's own prompts with the same model"
                )
            if conditioning.negatives and not self._generic.reads_negative():
                warnings.warn(
                    f"the negative prompt has no effect: {self.family.name} takes none", CandelaWarning, stacklevel=3
                )
            self.residency.need_all(full.width * full.height)
            pictures: list[torch.Tensor] = []
            for index, seed in enumerate(full.seeds):
                pace = Pace(self.device)
                report = self._reporter(pace, index, full, on_step, cancelled)
                prompt = index // full.count
                latents = self._generic.run(
                    self.components,
                    conditioning.prompts[prompt],
                    conditioning.negatives[prompt] if conditioning.negatives else None,
                    width=full.width,
                    height=full.height,
                    steps=full.steps,
                    guidance=full.guidance,
                    seed=seed,
                    on_progress=report,
                )
                pace.finish()
                sampling.check_finite(latents, "the latents", self.dtype)
                pictures.append(latents)
            return torch.cat(pictures)

    def _reporter(
        self, pace: Pace, index: int, full: Request, on_step: OnStep | None, cancelled: Callable[[], bool] | None
    ) -> Callable[[int, int], None]:
        """Picture `index`'s progress as steps of the whole request."""
        assert full.steps
        number = full.steps
        before, told = index * number, 0
        tell = on_step or (lambda step: None)

        def report(done: int, total: int) -> None:
            nonlocal told
            steps = max(before + total, number * full.total)
            fresh, told = done > told, done
            if fresh:
                pace.end(lambda seconds: tell(Step(before + done, steps, seconds, torch.empty(0), lambda latents: [])))
            if cancelled is not None and cancelled():
                raise Cancelled(before + done - pace.queued, steps)
            pace.begin()

        return report

    @on_ladder("decode")
    def decode_pixels(self, latents: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
        """Raw VAE latents [B, C, h, w] to pixels float32 [B, 3, H, W], -1..1, one picture at a time.

        Raises:
            InvalidRequest, GenerationError: as `decode`.
        """
        decoder, channels = decoder_of(self.components.by_name), self.latent_channels
        if latents.ndim != 4 or latents.shape[1] not in (3, channels):
            raise InvalidRequest(
                f"latents of shape {list(latents.shape)} do not belong to {self.model}: "
                f"its VAE takes [pictures, {channels}, height, width]"
            )
        if decoder is None or latents.shape[1] != channels:
            return latents.float()  # the pipeline's own pixels
        pictures = []
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            self.residency.need_all(latents[0, 0].numel() * self.family.latent_factor**2)
            with tiling(decoder, (tiled or self._tiled) and hasattr(decoder, "enable_tiling")):
                for single in latents.to(decoder.device, decoder.dtype).split(1):
                    pixels = decode(decoder, single)
                    sampling.check_finite(pixels, "the decoded pixels", decoder.dtype)
                    pictures.append(self._generic.finish(self.components, pixels))
        return torch.cat(pictures)

    def encode_image(
        self, image: Image.Image, width: int, height: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        self._generic.refuse_start()

    def encode_pixels(
        self, pixels: torch.Tensor, noise: torch.Tensor | None = None, *, tiled: bool = False
    ) -> torch.Tensor:
        self._generic.refuse_start()

    def prepare_preview(self) -> None:
        """There is none: what a pipeline's latents are on the way, only the pipeline knows."""

    def _negatives(self, full: Request) -> tuple[str, ...] | None:
        """Only what was said: without, the pipeline has its own way (zeros for SDXL, none for Qwen-Image)."""
        return full.negatives
