"""One loaded model, from prompt to picture."""

from __future__ import annotations

import copy
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from candela.checkpoints import Checkpoint, Components, load_components, read_checkpoint
from candela.checkpoints.fingerprint import fingerprint
from candela.checkpoints.lora import Lora
from candela.engine import fast as fast_mode
from candela.engine import memory, preview, sampling
from candela.engine.adapters import Adapters, AppliedLora, checked
from candela.engine.attempts import load_placed, on_ladder
from candela.engine.device import pick_device, pick_dtype
from candela.engine.embeddings import Embeddings
from candela.engine.planning import pick_rung
from candela.engine.request import Request, skipped_steps
from candela.engine.residency import Placed, Residency, Resident
from candela.engine.result import Result, Seconds
from candela.engine.sampling import OnStep
from candela.engine.skeletons import BUILDING
from candela.engine.tiling import tiling
from candela.errors import Cancelled, CandelaWarning, InvalidRequest, MismatchedModel
from candela.families import Conditioning, Defaults, Family, family_of
from candela.families.base import warn_unused_negative
from candela.record import Lora as LoraRecord
from candela.record import Record, file_name_of, names_of, pixels_sha256, versions
from candela.record import Start as StartRecord
from candela.rgb import as_rgb

if TYPE_CHECKING:
    from PIL import Image


class Engine:
    """A model in memory. Requests from several threads are served one after the other.

    Make one with `Engine.load`. A request that fails or is cancelled leaves it as it was.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        components: Components,
        device: torch.device,
        dtype: torch.dtype,
        load: float,
        residency: Residency | None = None,
        mode: str = fast_mode.EXACT,
    ):
        self.model = checkpoint.name
        self.fingerprint = fingerprint(checkpoint)
        self.family = family
        self.components = components
        self.defaults: Defaults = family.defaults(checkpoint)
        self.device = device
        self.dtype = dtype
        self.mode = mode
        self.load_seconds = load
        self.residency = residency or Resident()
        self._embeddings = Embeddings()
        self._lock = threading.RLock()
        self._previewer: preview.Previewer | None = None
        self._adapters: Adapters | None = None

    @classmethod
    @torch.inference_mode(False)  # weights are ordinary tensors, whoever calls
    def load(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        device: str | None = None,
        dtype: str | None = None,
        fast: bool | str = False,
        placement: str | None = None,
        residency: Callable[[Components], Residency] | None = None,
    ) -> Engine:
        """Loads a model by catalogue name, diffusers folder, the id of a hub repository already on disk, weight file,
        or its components one by one, "transformer=FILE,text_encoder=FILE,vae=FILE" (`candela.checkpoints.opening`).

        `device` is a torch device, by default the first GPU, else the CPU. `dtype` is float32, bfloat16 or
        float16; by default bfloat16 where the GPU has it, float32 elsewhere. Nothing is downloaded.
        `fast` computes with 8-bit numbers, which changes the picture a little (docs/fast.md): True for what the GPU
        does best, or "int8" or "fp8".
        `placement` is where transformer and text encoder are while they are not needed: resident, released or streamed
        (docs/memory.md); by default as there is memory for (`candela plan`). Where memory runs out all the same, it
        goes one down, with a CandelaWarning.
        With `residency`, the weights are loaded into main memory, and what it makes of them brings each
        component to the device when a stage needs it.

        Raises:
            ModelNotFound, MismatchedModel, DamagedFile: the files cannot be used; found before weights are read
                wherever headers tell.
            InvalidRequest: an unknown device or dtype; `fast` where there is no fast mode.
        """
        began = time.perf_counter()
        target = pick_device(device)
        precision = pick_dtype(dtype, target)
        checkpoint = read_checkpoint(model)
        family = family_of(checkpoint)
        kind = fast_mode.pick(fast, target, family, checkpoint)
        if checkpoint.assumed:
            warnings.warn(checkpoint.assumed, CandelaWarning, stacklevel=2)

        def load_fast(place: torch.device) -> Components:
            assert kind
            return fast_mode.load_fast(checkpoint, kind, device=place, dtype=precision, target=target)

        manager: Residency
        if residency:
            with BUILDING, memory.mapped(target):
                place = torch.device("cpu")
                components = load_fast(place) if kind else load_components(checkpoint, device=place, dtype=precision)
            family.prepare(components)
            manager = residency(components)
        else:
            if kind and target.type == "cpu" and placement not in (None, "resident"):
                raise InvalidRequest(
                    f"placement {placement!r} reads weights from the model's files, and fast mode on the CPU has other "
                    "ones: leave one of the two out"
                )
            rung = pick_rung(checkpoint, family, target, precision, placement, fast=bool(kind))
            components, manager = load_placed(
                checkpoint, family, rung, device=target, dtype=precision, fast=load_fast if kind else None
            )
            family.prepare(components)
        if kind and fast_mode.can_compile(target):
            fast_mode.compile_blocks(components.transformer)
        if family.whole_pipeline:
            from candela.engine.whole import WholePipelineEngine

            cls = WholePipelineEngine
        mode = f"fast {kind}" if kind else fast_mode.EXACT
        return cls(checkpoint, family, components, target, precision, time.perf_counter() - began, manager, mode)

    def generate(
        self, request: Request, *, on_step: OnStep | None = None, cancelled: Callable[[], bool] | None = None
    ) -> Result:
        """Carries out `request`. All its pictures form one batch.

        `on_step` is called after every step, in this thread, and may raise to stop the run; `cancelled` is
        asked before every step and stage.

        Raises:
            InvalidRequest: what this model cannot do, found before anything runs.
            GenerationError: NaN or infinite values where a picture should be.
            Cancelled: `cancelled()` was true.
        """
        with self._lock:
            memory.reset_peak(self.device)
            full = self._resolved(request)
            assert full.steps
            stop = cancelled or (lambda: False)
            if stop():
                raise Cancelled(0, full.steps)
            marks = [time.perf_counter()]

            def mark() -> None:
                memory.synchronize(self.device)
                marks.append(time.perf_counter())

            conditioning = self._encode_for(full)
            mark()
            latents = self.denoise(full, conditioning, on_step=on_step, cancelled=cancelled)
            mark()
            images: list[Image.Image] = []
            for single in latents.split(1):
                if stop():
                    raise Cancelled(full.steps, full.steps)
                images += self.decode(single)
            mark()
            encode, denoise, decode = (b - a for a, b in itertools.pairwise(marks))
            return Result(
                images=images,
                seeds=list(full.seeds),
                seconds=Seconds(self.load_seconds, encode, denoise, decode, marks[-1] - marks[0]),
                peak_bytes=memory.peak_bytes(self.device),
                request=full,
                records=[self._record(full, k) for k in range(full.total)],
            )

    def check(self, request: Request) -> Request:
        """`request` with every default filled in, and its prompts' lengths checked; nothing is run.

        Raises:
            InvalidRequest: whatever `generate` would find wrong with it.
        """
        with self._lock:
            full = self._resolved(request)
            for prompt in full.prompts:
                self.family.tokenize(self.components, prompt)
            for negative in self._negatives(full) or ():
                self.family.tokenize(self.components, negative, negative=True)
            return full

    # --- LoRAs ------------------------------------------------------------------------------

    @property
    def loras(self) -> tuple[AppliedLora, ...]:
        """Those that are on."""
        return self._adapters.applied if self._adapters else ()

    @on_ladder("denoise")
    def set_loras(self, loras: Sequence[Lora]) -> tuple[AppliedLora, ...]:
        """Exchanges the LoRAs that are on for `loras`; several add up, none takes all off, and the same set again
        costs nothing. They hold for every run from now on. The model's own weights are never touched.

        Returns:
            One report for each: how many of the model's modules it changes, always all that its file is for.

        Raises:
            InvalidRequest: something else than a Lora.
            ModelNotFound, DamagedFile, MismatchedModel: a file that is not there, is damaged, or was made for another
                model; what was on before still is.
        """
        wanted = checked(loras)
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            if wanted or self._adapters:
                return self._lora_adapters().replace(wanted)
            return ()

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Would `set_loras` take them? From the files' headers alone.

        Raises:
            InvalidRequest, CheckpointError: as `set_loras`.
        """
        wanted = checked(loras)
        with self._lock:
            for lora in wanted:
                self._lora_adapters().fit(lora)

    def _lora_adapters(self) -> Adapters:
        if self._adapters is None:
            transformer = self.components.by_name.get("transformer")
            if transformer is None:
                raise MismatchedModel(f"{self.model} has no transformer, and LoRAs are applied to one only")
            self._adapters = Adapters(transformer, self.family.name, self.dtype, self.residency)
        return self._adapters

    # --- the stages -------------------------------------------------------------------------

    @on_ladder("encode")
    def encode(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Conditioning:
        """Texts to text features, in main memory; `negative_prompts`, one per prompt, where guidance will be on.
        What was encoded lately is not encoded again.

        Raises:
            InvalidRequest: a prompt beyond the model's limit, in tokens; not as many negatives as prompts.
        """
        checked = Request(prompts, negative_prompts)
        prompts, negative_prompts = checked.prompts, checked.negatives
        with self._lock, memory.mapped(self.device):
            return self._embeddings.encode(prompts, negative_prompts, self._run_text_encoder)

    def encode_image(
        self, image: Image.Image, width: int, height: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A picture, resized to width x height if it is not, to raw VAE latents float32 [1, C, height/8, width/8]
        (8: the factor of nearly all VAEs, `family.latent_factor`).

        `noise` [B, C, height/8, width/8] picks B samples of the VAE's posterior; without it, its mean is returned.
        """
        from diffusers.image_processor import VaeImageProcessor
        from PIL import Image as Images

        image = as_rgb(image)
        if image.size != (width, height):
            image = image.resize((width, height), Images.Resampling.LANCZOS)
        return self.encode_pixels(VaeImageProcessor().preprocess(image), noise)

    @on_ladder("decode")
    def encode_pixels(
        self, pixels: torch.Tensor, noise: torch.Tensor | None = None, *, tiled: bool = False
    ) -> torch.Tensor:
        """Pixels float [B, 3, H, W] in -1..1, sides multiples of 8, to raw VAE latents float32 [B, C, H/8, W/8].

        `noise` as in `encode_image`; `tiled` takes the picture in overlapping pieces, with less memory.
        """
        vae = self.components.vae
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            self.residency.need("vae", pixels[0, 0].numel())
            with tiling(vae, tiled or self._tiled):
                posteriors = [vae.encode(p).latent_dist for p in pixels.to(vae.device, vae.dtype).split(1)]
            raw = torch.cat([posterior.mean for posterior in posteriors]).float()
            if noise is None:
                return raw
            return raw + torch.cat([posterior.std for posterior in posteriors]).float() * noise.to(raw.device)

    @on_ladder("denoise")
    def denoise(
        self,
        request: Request,
        conditioning: Conditioning,
        *,
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> torch.Tensor:
        """Text features to raw VAE latents, float32 [pictures, C, height / 8, width / 8].

        `conditioning` has one entry per prompt of `request`; the request's texts are not read.

        Raises:
            InvalidRequest, GenerationError, Cancelled: as `generate`.
        """
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            full = self._resolved(request)
            assert full.steps and full.guidance is not None and full.strength is not None
            vae, family = self.components.vae, self.family
            if len(conditioning.positive) != len(full.prompts):
                raise InvalidRequest(
                    f"{len(conditioning.positive)} encoded prompts for a request of {len(full.prompts)}: "
                    "encode the request's own prompts"
                )
            if family.guided(full.guidance) and conditioning.negative is None:
                raise InvalidRequest(
                    f"guidance {full.guidance:g} needs negative prompts, and none were encoded: "
                    "pass negative_prompts to encode ('' for each will do)"
                )
            found = conditioning.positive[0].shape[1]
            expected = self.components.transformer.config[family.text_width_key]
            if found != expected:
                raise InvalidRequest(
                    f"the encoded prompts have text features of width {found}; {self.model} expects {expected}: "
                    "encode them with the same model"
                )
            noise, start = self._noise_and_start(full)
            passes = 2 if family.guided(full.guidance) else 1
            self.residency.need("transformer", passes * noise[:, 0].numel() * family.latent_factor**2)
            scheduler = copy.deepcopy(self.components.scheduler)
            family.set_timesteps(scheduler, full.steps, noise)
            latents = sampling.denoise(
                family.predictor(self.components, conditioning.repeated(full.count), full.guidance, noise.shape),
                scheduler,
                noise,
                start=start,
                first=0 if start is None else self._skipped(full),
                on_step=on_step,
                cancelled=cancelled,
                preview=self._preview,
            )
            sampling.check_finite(latents, "the latents", self.dtype)
            return family.to_raw(vae, latents)

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Raw VAE latents [B, C, h, w] to RGB pictures of 8h x 8w, one at a time.

        Raises:
            InvalidRequest: another number of channels than the VAE's.
            GenerationError: NaN or infinite pixels.
        """
        from diffusers.image_processor import VaeImageProcessor

        images: list[Image.Image] = []
        for single in latents.split(1):
            images += VaeImageProcessor().postprocess(self.decode_pixels(single), output_type="pil")
        return images

    @on_ladder("decode")
    def decode_pixels(self, latents: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
        """Raw VAE latents [B, C, h, w] to pixels float32 [B, 3, 8h, 8w], about -1..1, one picture at a time.

        `tiled` decodes in overlapping pieces, with less memory and faint differences.

        Raises:
            InvalidRequest, GenerationError: as `decode`.
        """
        vae = self.components.vae
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise InvalidRequest(
                f"latents of shape {list(latents.shape)} do not belong to {self.model}: "
                f"its VAE takes [pictures, {self.latent_channels}, height / {self.family.latent_factor}, "
                f"width / {self.family.latent_factor}]"
            )
        pictures = []
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            self.residency.need("vae", latents[0, 0].numel() * self.family.latent_factor**2)
            weight = next(vae.parameters())  # the VAE's own `device` and `dtype` walk through all modules
            for single in latents.to(weight.device, weight.dtype).split(1):
                with tiling(vae, tiled or self._tiled):
                    pixels = vae.decode(single, return_dict=False)[0].float()
                sampling.check_finite(pixels, "the decoded pixels", weight.dtype)
                pictures.append(pixels)
        return torch.cat(pictures)

    @on_ladder("decode")
    def prepare_preview(self) -> None:
        """Prepares what `Step.preview` uses; with the VAE, so best before the transformer has the device."""
        with self._lock, torch.no_grad(), memory.mapped(self.device):
            if self._previewer is None:
                self.residency.need("vae", preview.PIXELS)
                self._previewer = preview.previewer(self.components.vae, self.device, self.dtype)

    # --- parts ------------------------------------------------------------------------------

    @property
    def _tiled(self) -> bool:
        return isinstance(self.residency, Placed) and self.residency.rung.tiled

    @property
    def latent_channels(self) -> int:
        """Of the VAE, and so of every LATENT of this model."""
        return self.components.vae.config.latent_channels

    def _latent_shape(self, full: Request) -> tuple[int, int, int]:
        """Channels, height and width of one picture's latents."""
        assert full.width and full.height
        factor = self.family.latent_factor
        return self.latent_channels, full.height // factor, full.width // factor

    def _resolved(self, request: Request) -> Request:
        """With every default filled in, and every tensor's shape held against this model."""
        if not isinstance(request, Request):
            kind = type(request).__name__
            raise InvalidRequest(f"a request is a Request, not {kind}: Request({str(request)[:40]!r})")
        full = request.resolved(self.family, self.defaults)
        shape = self._latent_shape(full)
        if full.latents is not None and tuple(full.latents.shape[1:]) != shape:
            raise InvalidRequest(
                f"latents of shape {list(full.latents.shape)} do not belong to {self.model}: "
                f"it takes [pictures, {', '.join(map(str, shape))}] at {full.width}x{full.height}"
            )
        if full.mask is not None and tuple(full.mask.shape[2:]) != shape[1:]:
            raise InvalidRequest(
                f"the mask is {full.mask.shape[3]}x{full.mask.shape[2]}; at {full.width}x{full.height} it must be "
                f"{shape[2]}x{shape[1]}: {self.family.latent_factor} pixels a side are one latent"
            )
        return full

    def _negatives(self, full: Request) -> tuple[str, ...] | None:
        """What the negative pass is encoded from: None where there is none."""
        assert full.guidance is not None
        if not self.family.guided(full.guidance):
            return None
        return full.negatives or ("",) * len(full.prompts)

    def _run_text_encoder(self, prompts: Sequence[str], negatives: Sequence[str] | None) -> Conditioning:
        self.residency.need("text_encoder")
        return self.family.encode(self.components, prompts, negatives)

    def _encode_for(self, full: Request) -> Conditioning:
        negatives = self._negatives(full)
        if negatives is None and any(full.negatives or ()):
            assert full.guidance is not None
            warn_unused_negative(self.family, full.guidance)
        return self.encode(full.prompts, negatives)

    def _noise_and_start(self, full: Request) -> tuple[torch.Tensor, sampling.Start | None]:
        """Noise per picture, and what image-to-image starts from, both on the device, in the model's scale."""
        shape = self._latent_shape(full)
        seeds = full.seeds
        if full.image is not None:
            assert full.width and full.height
            # As diffusers draws it: first the posterior's sample, then the noise, from one generator.
            sample, noise = sampling.noise_for(seeds, (2, *shape)).unbind(1)
            raw = self.encode_image(full.image, full.width, full.height, sample)
        elif full.latents is not None:
            raw, noise = full.latents.float(), sampling.noise_for(seeds, shape)
        else:
            return sampling.noise_for(seeds, shape).to(self.device), None
        latents = self.family.to_model(self.components.vae, raw.to(self.device)).expand(len(seeds), -1, -1, -1)
        mask = None if full.mask is None else full.mask.to(self.device, torch.float32)
        return noise.to(self.device), sampling.Start(latents, mask)

    def _skipped(self, full: Request) -> int:
        """How many of the first steps are left out, with a warning where that is not what the strength says."""
        assert full.steps and full.strength
        first, walked = skipped_steps(full.steps, full.strength), full.steps * full.strength
        if full.strength < 1 and not first:
            which = "so the start has no effect" if full.mask is None else "so it is as 1"
            most = (full.steps - 1) * 1000 // full.steps / 1000  # rounded down, or it would be none again
            warnings.warn(
                f"strength {full.strength:g} leaves out none of {full.steps} steps, {which}: "
                + (f"with {full.steps} steps, use at most {most:g}" if most else "take more steps"),
                CandelaWarning,
                stacklevel=5,
            )
        elif walked < 1:
            warnings.warn(
                f"strength {full.strength:g} of {full.steps} steps is less than a step: one runs, as with strength "
                f"{1 / full.steps:.3g}",
                CandelaWarning,
                stacklevel=5,
            )
        return first

    def _preview(self, latents: torch.Tensor) -> list[Image.Image]:
        if self._previewer is None:
            self._previewer = preview.previewer(self.components.vae, self.device, self.dtype)
        return self._previewer(latents, self.family.to_raw(self.components.vae, latents))

    def _record(self, full: Request, index: int) -> Record:
        assert full.width and full.height and full.steps and full.guidance is not None and full.strength is not None
        prompt = index // full.count
        start = None
        if full.image is not None:
            file = getattr(full.image, "filename", None)  # PIL's, where the picture was opened from one
            start = StartRecord(file_name_of(os.fspath(file)) if file else None, pixels_sha256(full.image))
        return Record(
            model=names_of(self.model),
            family=self.family.name,
            prompt=full.prompts[prompt],
            negative_prompt=full.negatives[prompt] if full.negatives else None,
            width=full.width,
            height=full.height,
            steps=full.steps,
            guidance=full.guidance,
            cfg=self.family.cfg(full.guidance),
            seed=full.seeds[index],
            strength=full.strength,
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device.type,
            mode=self.mode,
            start=start,
            loras=tuple(LoraRecord(file_name_of(lora.path), lora.strength, lora.sha256) for lora in self.loras),
            remake=full.latents is None and full.mask is None,
            fingerprint=self.fingerprint,
            versions=versions(),
        )
