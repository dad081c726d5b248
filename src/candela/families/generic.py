"""Any text-to-image pipeline of diffusers that has no family file of its own.

The pipeline runs whole, as its authors wrote it, one picture at a time. What Candela promises comes from four
places where any pipeline can be met: the signature of its `__call__` (which settings there are, and their
defaults), its own `check_inputs` (which sizes it makes), its progress bar (steps, and where to stop), and the
`decode` of its VAE: what a pipeline hands to the decoder is the raw latent, whatever packing and scaling came
before, so there the run is left and the latent taken along.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from candela.checkpoints import Checkpoint, Components, Part, part_class
from candela.checkpoints.exhausted import ran_out
from candela.errors import CandelaError, CandelaWarning, GenerationError, InvalidRequest, MismatchedModel
from candela.families.base import Conditioning, Defaults, Family, Predictor
from candela.families.decoders import DECODERS, Reached, decoder_of, left_at, picture, spatial_factor
from candela.families.progress import Bars, OnProgress, with_parts_inside

GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale", "prior_guidance_scale")
INDISPENSABLE = ("gligen_phrases", "source_embeds")  # None by default, and yet no run goes without
STEPS = ("num_inference_steps", "steps")
SAFE_SIDE = 1024  # a multiple of every patch
MOST_TRIES = 10  # until a size that a pipeline changes comes to rest; Hidream's took 8 at most of 2000 that were tried
FIXED_FACTOR = re.compile(r"^\s*self\.(vae_scale_factor\w*) = (\d+)$", re.MULTILINE)  # in an __init__
COUNTED_FACTOR = re.compile(r"\bheight\)? // (\d+)\b")  # in a __call__


@dataclass(frozen=True)
class Texts(Conditioning):
    """Prompts as they are: the pipeline encodes them when it runs."""

    negatives: tuple[str, ...] | None = None


# --- which pipelines ------------------------------------------------------------------------


def why_not(cls: Any) -> str | None:
    """Why `cls`, a pipeline of diffusers, cannot be driven from a text alone; None if it can.

    Read from its signatures, so that it holds for pipelines not yet written."""
    call, init = (inspect.signature(method).parameters for method in (cls.__call__, cls.__init__))
    if video := [name for name in call if "frame" in name or "video" in name]:
        return f"it makes videos or scenes ({video[0]})"
    if audio := [name for name in call if "audio" in name]:
        return f"it makes sound ({audio[0]})"
    if "prompt" not in call:
        return "it takes no prompt"
    if control := [name for name in [*init, *call] if name.startswith(("control", "adapter"))]:
        return f"it needs a picture to be controlled by ({control[0]})"
    optional = inspect.Parameter.empty, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    required = [p.name for p in call.values() if p.default is optional[0] and p.kind not in optional[1:]]
    if needed := [name for name in required if name not in ("self", "prompt")] + [
        n for n in INDISPENSABLE if n in call
    ]:
        return f"it needs more than a prompt ({', '.join(needed)})"
    if "mask_image" in call:
        return "it repaints a picture (mask_image)"
    source = inspect.getsource(cls.__call__)
    known = cls in _text_to_image()
    starts = [name for name in ("image", "images") if name in call]
    if starts and ("strength" in call or not (known or "if image is None else" in source)):
        return f"it starts from a picture ({starts[0]})"
    if not (known or "images=" in source or "ImagePipelineOutput(" in source):
        return "it returns no pictures"
    return None


@functools.cache
def _text_to_image() -> frozenset[Any]:
    """Those that diffusers itself lists as such: there a picture beside the prompt may be left out."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return frozenset(AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values())


def pipeline_class(name: str) -> Any | None:
    """diffusers' pipeline of that name, or None."""
    import diffusers

    cls = getattr(diffusers, name, None) if name.isidentifier() else None
    return cls if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline) else None


# --- one of them ----------------------------------------------------------------------------


class Generic(Family):
    """One pipeline of diffusers; unlike the other families, an object per checkpoint.

    Raises:
        MismatchedModel: a pipeline that diffusers does not have, that makes something else than pictures from a
            text, or whose components are not all there or do not fit each other.
    """

    image_to_image = False
    whole_pipeline = True
    max_side = 16384

    def __init__(self, checkpoint: Checkpoint):
        self.name = checkpoint.pipeline  # type: ignore[misc]  # of this object: what messages are about
        self.checkpoint = checkpoint
        cls = pipeline_class(checkpoint.pipeline)
        if cls is None:
            raise MismatchedModel(
                f"{checkpoint.path} is a {checkpoint.pipeline}, which the installed diffusers does not have. Candela "
                "runs diffusers' text-to-image pipelines: update diffusers if it is newer than yours"
            )
        if reason := why_not(cls):
            raise MismatchedModel(
                f"{checkpoint.path} is a {checkpoint.pipeline}; Candela runs pipelines that make pictures from text "
                f"alone, and this one cannot: {reason}. docs/pipelines.md lists those that can"
            )
        self.cls = cls
        self.settings = inspect.signature(cls.__call__).parameters
        self._check_parts()
        self.guidance_name = self._first(GUIDANCE)
        self.steps_name = self._first(STEPS)
        self.skeleton = self._skeleton()
        self.latent_factor = spatial_factor(decoder_of(vars(self.skeleton))) if self.skeleton else 8
        self._check_factor()
        self.size_multiple = self._size_multiple()

    def _first(self, names: Sequence[str]) -> str | None:
        """The first of `names` that the pipeline's call has with a default, else the first that it has at all."""
        known = [name for name in names if name in self.settings]
        return next((name for name in known if self.settings[name].default is not None), known[0] if known else None)

    def _check_parts(self) -> None:
        optional = set(self.cls._optional_components)
        needed = [
            name
            for name, parameter in inspect.signature(self.cls.__init__).parameters.items()
            if parameter.default is inspect.Parameter.empty and name not in optional and name != "self"
        ]
        given = {**self.checkpoint.parts, **self.checkpoint.options}
        if absent := [name for name in needed if name not in given]:
            raise MismatchedModel(
                f"{self.checkpoint.path} has no {', '.join(absent)}; {self.name} needs {', '.join(needed)}. "
                "Download the model again"
            )

    def _check_factor(self) -> None:
        """Some pipelines count 8 or 16 pixels a side of a latent whatever the VAE has; with another VAE every picture
        would be of another size than asked for."""
        fixed = FIXED_FACTOR.findall(inspect.getsource(self.cls.__init__))
        own = {int(number) for name, number in fixed if getattr(self.skeleton, name, None) == int(number)}
        own |= set(map(int, COUNTED_FACTOR.findall(inspect.getsource(self.cls.__call__))))
        if self.skeleton and own and self.latent_factor not in own:
            path = next((self.checkpoint.parts[name].path for name in DECODERS if name in self.checkpoint.parts), "")
            factor = self.latent_factor
            raise MismatchedModel(
                f"{path}: one latent of this VAE is {factor}x{factor} pixels; {self.name} works with VAEs of "
                f"{min(own)}x{min(own)}. Use the VAE that belongs to the model"
            )

    # --- before loading -----------------------------------------------------------------------

    def check_size(self, width: int, height: int) -> None:
        """
        Raises:
            InvalidRequest: a side that is out of range or no multiple; a size that the pipeline's own check refuses
                or would change.
        """
        super().check_size(width, height)
        default = self.defaults(self.checkpoint)
        said = self._complaint(width, height)
        if said and not self._complaint(default.width, default.height):  # else it is not about the size
            raise InvalidRequest(f"{self.name} does not make {width}x{height}: {said.partition('. ')[0]}")

    def prepare(self, components: Components) -> None:
        """Nothing: the pipeline's own code runs."""

    def variant_defaults(self, checkpoint: Checkpoint) -> Defaults:
        steps, guidance = (
            self.settings[name].default if name else None for name in (self.steps_name, self.guidance_name)
        )
        scheduler = checkpoint.parts.get("scheduler")
        if (
            self.name == "StableDiffusionXLPipeline"
            and scheduler is not None
            and scheduler.class_name == "EulerAncestralDiscreteScheduler"
            and scheduler.config.get("timestep_spacing") == "trailing"
        ):
            return Defaults(512, 512, steps=1, guidance=0.0)  # SDXL-Turbo, which nothing else in its files tells
        height, width = self._default_size()
        return Defaults(
            width,
            height,
            steps if isinstance(steps, int) else 50,
            float(guidance) if isinstance(guidance, (int, float)) else 0.0,
        )

    def _default_size(self) -> tuple[int, int]:
        """Height and width: of the call, else those that the pipeline itself computes from its configuration."""
        own = [self.settings[name].default for name in ("height", "width") if name in self.settings]
        if len(own) == 2 and all(isinstance(side, int) for side in own):
            return own[0], own[1]
        sample = getattr(self.skeleton, "default_sample_size", None)
        for name in ("unet", "transformer", "prior_transformer"):
            part = self.checkpoint.parts.get(name)
            sample = sample or (part and part.config.get("sample_size"))
        sides: list[Any] = list(sample) if isinstance(sample, (list, tuple)) else [sample] * 2
        if not all(isinstance(side, int) for side in sides):
            return SAFE_SIDE, SAFE_SIDE
        factor = getattr(self.skeleton, "vae_scale_factor", self.latent_factor)
        height, width = (-(-side * factor // self.size_multiple) * self.size_multiple for side in sides)
        return height, width

    def _skeleton(self) -> Any | None:
        """The pipeline around components without weights, to ask it about sizes; None if it cannot be built so."""
        parts = {name: _stand_in(name, part) for name, part in self.checkpoint.parts.items()}
        try:
            return self.build(parts)
        except MismatchedModel:
            raise
        except Exception:  # whatever an __init__ may want of a real component; then sizes are checked later
            return None

    def _size_multiple(self) -> int:
        """Of what both sides must be a multiple, found by trying."""
        own = getattr(self.skeleton, "vae_scale_factor", 1)
        for multiple in (8, 16, 32, 64, 128, 256):
            if (
                multiple % self.latent_factor == 0
                and multiple % own == 0
                and not self._complaint(SAFE_SIDE + multiple, SAFE_SIDE + multiple)
            ):
                return multiple
        return max(16, self.latent_factor)

    def _complaint(self, width: int, height: int) -> str | None:
        """What the pipeline's own check says about a size. A warning counts: what it would round is refused."""
        check = getattr(self.skeleton, "check_inputs", None)
        if check is None:
            return None
        given: dict[str, Any] = {"prompt": "a", "width": width, "height": height, "callback_steps": 1}
        for name, parameter in inspect.signature(check).parameters.items():
            if name not in given and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                ours = self.settings[name].default if name in self.settings else inspect.Parameter.empty
                default = ours if parameter.default is inspect.Parameter.empty else parameter.default
                given[name] = None if default is inspect.Parameter.empty else default
        wanted = {name: value for name, value in given.items() if name in inspect.signature(check).parameters}
        with _overheard({self.cls.__module__}, "divisible", "multiple", "resized") as heard:
            try:
                check(**wanted)
            except Exception as error:
                return str(error)
        return next(iter(heard), None)

    # --- text: the pipeline's own affair ------------------------------------------------------

    def tokenize(self, components: Components, prompt: str, *, negative: bool = False) -> torch.Tensor:
        """Nothing to refuse: each pipeline cuts long prompts in its own way, and says so in its log."""
        return torch.empty(1, 0, dtype=torch.long)

    def encode(self, components: Components, prompts: Sequence[str], negatives: Sequence[str] | None) -> Texts:
        nothing = tuple(torch.empty(0, 0) for _ in prompts)
        return Texts(tuple(prompts), nothing, negatives=tuple(negatives) if negatives and any(negatives) else None)

    def reads_negative(self) -> bool:
        return "negative_prompt" in self.settings

    def cfg(self, guidance: float) -> float:
        return guidance

    # The loop is the pipeline's, so these are never asked for.
    def template(self, components: Components, prompt: str, *, negative: bool) -> NoReturn:
        raise NotImplementedError

    def set_timesteps(self, scheduler: Any, steps: int, latents: torch.Tensor) -> NoReturn:
        raise NotImplementedError

    def predictor(
        self, components: Components, conditioning: Conditioning, guidance: float, shape: torch.Size
    ) -> Predictor:
        raise NotImplementedError

    # --- running ------------------------------------------------------------------------------

    def build(self, components: Mapping[str, Any]) -> Any:
        """A fresh pipeline around `components`. Schedulers and guiders are copied: they count steps as they go."""
        from diffusers import ConfigMixin

        given = {
            name: copy.deepcopy(part)
            if isinstance(part, ConfigMixin) and not isinstance(part, torch.nn.Module)
            else part
            for name, part in components.items()
        }
        for name, parameter in inspect.signature(self.cls.__init__).parameters.items():
            if name in self.checkpoint.options:
                given[name] = self.checkpoint.options[name]
            elif name not in given and name != "self" and parameter.default is inspect.Parameter.empty:
                given[name] = None
        try:
            return self.cls(**given)
        except ImportError as error:
            raise MismatchedModel(f"{self.name} needs a Python package that is missing: {error}") from error

    def run(
        self,
        components: Components,
        prompt: str,
        negative: str | None,
        *,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
        on_progress: OnProgress,
    ) -> torch.Tensor:
        """One picture: raw latents float32 [1, C, h, w], or where the pipeline has none, pixels [1, 3, H, W] in -1..1.

        Raises:
            InvalidRequest: what the pipeline refuses, in its words.
            GenerationError: it failed otherwise.
        """
        wanted: dict[str | None, Any] = {
            "prompt": prompt,
            "width": width,
            "height": height,
            self.steps_name: steps,
            self.guidance_name: guidance,
            "generator": torch.Generator("cpu").manual_seed(seed),
            "output_type": "pil",
            "use_resolution_binning": False,  # the size that was asked for, not the nearest trained one
            "max_area": width * height,  # or Flux Kontext scales every size to a megapixel
        }
        if steps != 2:  # Sana Sprint's default for this is for two steps, and refused with any other number
            wanted["intermediate_timesteps"] = None
        if negative:  # without, each pipeline has a default of its own
            wanted["negative_prompt"] = negative
        arguments = {str(name): value for name, value in wanted.items() if name in self.settings}
        bars = Bars(on_progress)
        pipeline = self.build(components.by_name)
        for part in with_parts_inside(pipeline):
            part.progress_bar = bars.bar
            self._watch_size(part, width, height)
        modules = {type(part).__module__ for part in with_parts_inside(pipeline)}
        with left_at(decoder_of(components.by_name)) as left, _said_aloud(self.name, modules, "truncated"):
            try:
                images = pipeline(**arguments)[0]  # `images` of most, `image` of some
            except Reached:
                return self._sized(picture(left[0]), width, height)
            except _OtherSize as other:
                self._refuse_size(
                    other.size, width, height, self._settled(components, arguments, other.size, on_progress)
                )
            except CandelaError:
                raise
            except Exception as error:
                if error is bars.raised or ran_out(error):
                    raise
                if isinstance(error, (ImportError, NameError)):  # the latter where the import was optional: ftfy
                    raise MismatchedModel(f"{self.name} needs a Python package that is missing: {error}") from error
                if isinstance(error, (ValueError, TypeError)) and not bars.done:
                    raise InvalidRequest(f"{self.name} refuses this: {error}") from error
                raise GenerationError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        pixels = torch.from_numpy(np.asarray(images[0].convert("RGB")).copy()).permute(2, 0, 1)[None]
        return self._sized(pixels.float() / 127.5 - 1, width, height, factor=1)

    def _sized(self, result: torch.Tensor, width: int, height: int, factor: int | None = None) -> torch.Tensor:
        factor = factor or self.latent_factor
        found = (result.shape[3] * factor, result.shape[2] * factor)
        if found != (width, height):
            self._refuse_size(found, width, height, None)
        return result

    def _settled(
        self, components: Components, arguments: Mapping[str, Any], size: tuple[int, int], on_progress: OnProgress
    ) -> tuple[int, int] | None:
        """The size that comes out unchanged, beginning with `size` and found by asking the pipeline for each in turn,
        up to its noise; None if there is none. (HiDream scales again what it has scaled.)"""
        for _ in range(MOST_TRIES):
            bars = Bars(
                lambda done, total: on_progress(0, total)
            )  # a prior's steps: no picture's, but they can be stopped
            pipeline = self.build(components.by_name)
            for part in with_parts_inside(pipeline):
                part.progress_bar = bars.bar
                self._watch_size(part, *size, only=True)
            try:
                self.check_size(*size)
                sides = {"width": size[0], "height": size[1], "max_area": size[0] * size[1]}
                pipeline(**{**arguments, **{name: sides[name] for name in sides.keys() & arguments}})
            except _OtherSize as other:
                if other.size == size:
                    return size
                size = other.size
            except (ValueError, RuntimeError) as error:  # the pipeline does not make this size either
                if error is bars.raised:
                    raise
                return None
        return None

    def _watch_size(self, pipeline: Any, width: int, height: int, only: bool = False) -> None:
        """Some pipelines round a size, or scale it to the one they were trained on, without a word. Most then call
        `prepare_latents` with what they made of it, before the first step; `_OtherSize` is raised there. With `only`,
        it is raised in any case."""
        real = getattr(pipeline, "prepare_latents", None)
        if real is None:
            return

        @functools.wraps(real)
        def instead(*given: Any, **named: Any) -> Any:
            bound = inspect.signature(real).bind(*given, **named).arguments
            sides: tuple[Any, Any] = (bound.get("width"), bound.get("height"))
            if len(shape := bound.get("shape", ())) == 4 and decoder_of(vars(pipeline)):
                sides = shape[3] * self.latent_factor, shape[2] * self.latent_factor
            # A size in latents, of which the pixels are a multiple, is none of our business.
            if all(isinstance(side, int) for side in sides):
                if width % sides[0] or height % sides[1]:
                    raise _OtherSize(sides)
                if only:
                    raise _OtherSize((width, height))
            return real(*given, **named)

        pipeline.prepare_latents = instead

    def _refuse_size(
        self, found: tuple[int, int], width: int, height: int, advised: tuple[int, int] | None
    ) -> NoReturn:
        default = self.defaults(self.checkpoint)
        advice = [f"ask for {advised[0]}x{advised[1]}"] if advised else []
        if (default.width, default.height) != (width, height):
            advice.append("leave the size out")
        raise InvalidRequest(
            f"{self.name} makes a picture of {found[0]}x{found[1]} when asked for {width}x{height}: "
            + (" or ".join(advice) or "its components do not belong together")
        )

    def finish(self, components: Components, decoded: torch.Tensor) -> torch.Tensor:
        """What the pipeline does to decoded pixels [1, 3, H, W] before they are a picture -> in -1..1."""
        pipeline = self.build(components.by_name)
        processor = getattr(pipeline, "image_processor", None)
        unit = type(decoder_of(components.by_name)).__name__ == "PaellaVQModel" or (
            processor is not None and not getattr(processor.config, "do_normalize", True)
        )
        if unit:  # these decoders give 0..1
            decoded = decoded * 2 - 1
        if getattr(pipeline, "watermark", None) is not None:
            decoded = pipeline.watermark.apply_watermark(decoded)
        if getattr(pipeline, "safety_checker", None) is not None and hasattr(pipeline, "run_safety_checker"):
            decoded, flagged = pipeline.run_safety_checker(decoded, decoded.device, decoded.dtype)[:2]
            if any(flagged or ()):
                decoded = torch.full_like(decoded, -1.0)  # black, as the pipeline gives it
        return decoded


# --- helpers --------------------------------------------------------------------------------


class _OtherSize(Exception):
    """A pipeline is about to make a picture of this size, width and height."""

    def __init__(self, size: tuple[int, int]):
        super().__init__(size)
        self.size = size


class StandIn:
    """Has the attributes that it is given."""

    def __init__(self, attributes: Mapping[str, Any]):
        self.__dict__.update(attributes)


def _stand_in(name: str, part: Part) -> Any:
    """What a pipeline's `__init__` may read of a component, without its weights."""
    cls = part_class(part, name)
    if not part.files:
        if hasattr(cls, "from_config"):
            return cls.from_config(part.config)
        return StandIn({"model_max_length": 77, **part.config})
    if hasattr(cls, "from_config") and part.library != "transformers":
        with torch.device("meta"):
            return cls.from_config(part.config)
    config_class = getattr(cls, "config_class", None)
    return StandIn({"config": config_class.from_dict(part.config) if config_class else StandIn(part.config)})


@contextmanager
def _overheard(modules: set[str], *words: str) -> Iterator[list[str]]:
    """What these modules log meanwhile with one of `words` in it, whatever the level; it does not get further."""
    heard: list[str] = []
    loggers = [logging.getLogger(module) for module in modules]
    levels = [logger.level for logger in loggers]

    def listen(record: logging.LogRecord) -> bool:
        ours = any(word in record.getMessage() for word in words)
        if ours:
            heard.append(record.getMessage())
        return not ours and record.levelno >= logging.getLogger("diffusers").level

    for logger in loggers:
        logger.addFilter(listen)
        logger.setLevel(logging.WARNING)
    try:
        yield heard
    finally:
        for logger, level in zip(loggers, levels):
            logger.removeFilter(listen)
            logger.setLevel(level)


@contextmanager
def _said_aloud(name: str, modules: set[str], word: str) -> Iterator[None]:
    """Our own warnings of what a pipeline only writes into its log."""
    with _overheard(modules, word) as heard:
        yield
    for text in dict.fromkeys(heard):
        warnings.warn(f"{name}: {text}", CandelaWarning, stacklevel=4)
