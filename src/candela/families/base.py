"""What a family says about itself, and the little that every family shares."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch

from candela.checkpoints import Checkpoint, Components, Part
from candela.checkpoints.exhausted import ran_out
from candela.checkpoints.fitting import check_fit
from candela.errors import CandelaWarning, DamagedFile, InvalidRequest, MismatchedModel
from candela.families.vae import factor_of, quicken

# (latents float32 [B, C, h, w] on the model's device, in its scale; timestep, scalar) -> velocity, likewise
Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SHIFTING = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")  # what its shift is computed from
SCHEDULER = "FlowMatchEulerDiscreteScheduler"  # of all families that have a file here


@dataclass(frozen=True)
class Defaults:
    """The settings a model is used with when a request leaves them open. Sizes in pixels."""

    width: int = 1024
    height: int = 1024
    steps: int = 30
    guidance: float = 4.0


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: per prompt one tensor of text features [tokens, width], without padding.

    `negative` is None when the guidance it was encoded for needs no negative pass.
    """

    prompts: tuple[str, ...]
    positive: tuple[torch.Tensor, ...]
    negative: tuple[torch.Tensor, ...] | None = None

    def repeated(self, count: int) -> Conditioning:
        """Each prompt `count` times in a row: one entry per picture."""

        def each(items: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(item for item in items for _ in range(count))

        negative = None if self.negative is None else each(self.negative)
        return Conditioning(each(self.prompts), each(self.positive), negative)


class Family(ABC):
    """One architecture: what differs from the others, and nothing about files, devices or loops."""

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]  # the `_class_name`s in model_index.json
    transformer_class: ClassVar[str]
    text_width_key: ClassVar[str]  # where the transformer's config keeps the width of text features
    max_tokens: ClassVar[int]  # of a prompt, template included
    max_side: int  # pixels; the reach of the model's position tables
    axes_lens: ClassVar[tuple[int, ...]] = ()  # the shortest position tables with which the two above can be kept
    guidance_off: ClassVar[float]  # at or below this guidance there is no negative pass
    latent_factor: int = 8  # pixels a side per latent
    size_multiple: int = 16  # latent factor x patches of 2
    image_to_image: ClassVar[bool] = True
    whole_pipeline: ClassVar[bool] = False  # is the loop diffusers' own?
    empty_texts: ClassVar[bool] = False  # can it be conditioned on no token at all?

    # --- before loading ---------------------------------------------------------------------

    @abstractmethod
    def variant_defaults(self, checkpoint: Checkpoint) -> Defaults: ...

    def defaults(self, checkpoint: Checkpoint) -> Defaults:
        """The folder's own preferences (candela.json) over the variant's.

        Raises:
            DamagedFile: a preference that is none, or not a number.
        """
        known = {field.name for field in dataclasses.fields(Defaults)}
        where = checkpoint.path / "candela.json" if checkpoint.path.is_dir() else checkpoint.path
        for name, value in checkpoint.defaults.items():
            if name not in known or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise DamagedFile(
                    f"{where}: the default {name}={value!r} is not a number for one of "
                    f"{', '.join(sorted(known))}. Correct or remove it"
                )
        return dataclasses.replace(self.variant_defaults(checkpoint), **checkpoint.defaults)

    def check(self, checkpoint: Checkpoint) -> None:
        """Do the components fit each other, by their configurations?

        Raises:
            MismatchedModel: a component missing or of the wrong class, or two widths that differ, in numbers.
        """
        needed = ("transformer", "text_encoder", "tokenizer", "vae", "scheduler")
        parts = checkpoint.parts
        if absent := [name for name in needed if name not in parts]:
            raise MismatchedModel(
                f"{checkpoint.path} has no {', '.join(absent)}; {self.name} needs {', '.join(needed)}. "
                "Download the model again"
            )
        if parts["transformer"].class_name != self.transformer_class:
            raise MismatchedModel(
                f"{checkpoint.path}: {self.name} needs a {self.transformer_class}; its transformer is a "
                f"{parts['transformer'].class_name}"
            )
        if parts["scheduler"].library == "diffusers" and parts["scheduler"].class_name != SCHEDULER:
            raise MismatchedModel(
                f"{parts['scheduler'].path}: {self.name} is sampled with a {SCHEDULER}; this is a "
                f"{parts['scheduler'].class_name}. Use the scheduler that the model came with"
            )
        check_fit(parts)
        scheduler = parts["scheduler"]
        if unset := [key for key in SHIFTING if key in scheduler.config and scheduler.config[key] is None]:
            raise DamagedFile(
                f"{scheduler.path}: its configuration has {unset[0]!r} = null, and {self.name} computes with it. Take "
                "it from the published model"
            )
        lengths = parts["transformer"].config.get("axes_lens")
        if self.axes_lens and lengths is not None:
            known = isinstance(lengths, (list, tuple)) and len(lengths) == len(self.axes_lens)
            if not known or any(not isinstance(a, int) or a < b for a, b in zip(lengths, self.axes_lens)):
                raise DamagedFile(
                    f"{parts['transformer'].path}: its configuration has 'axes_lens' = {str(lengths)[:80]}; prompts of "
                    f"{self.max_tokens} tokens and pictures of {self.max_side} pixels a side need position tables of "
                    f"{list(self.axes_lens)} at least. Download it again"
                )

    def with_vae(self, vae: Part) -> Family:
        """This family with the factor of this VAE. Here: with that of the family only, since diffusers' pipelines of
        both Luminas count 8 pixels a side of a latent whatever the VAE has, and so give pictures of another size.

        Raises:
            MismatchedModel: the VAE has another factor, or blocks whose numbers contradict each other.
        """
        if (factor := factor_of(vae)) != self.latent_factor:
            raise MismatchedModel(
                f"{vae.path}: one latent of this VAE is {factor}x{factor} pixels; {self.name} works with VAEs of "
                f"{self.latent_factor}x{self.latent_factor}. Use the VAE that belongs to the model"
            )
        return self

    def check_size(self, width: int, height: int) -> None:
        """
        Raises:
            InvalidRequest: a side that is no `size_multiple` (the two nearest are named), or too long.
        """
        multiple = self.size_multiple
        for name, side in (("width", width), ("height", height)):
            if side % multiple and side < self.max_side:
                near = (side // multiple * multiple, -(-side // multiple) * multiple)
                nearest = " or ".join(str(one) for one in near if 0 < one <= self.max_side)
                raise InvalidRequest(f"{name} {side} is not a multiple of {multiple}: use {nearest}")
            if not multiple <= side <= self.max_side:
                raise InvalidRequest(
                    f"{name} {side} is out of range: {self.name} makes pictures of {multiple} to {self.max_side} "
                    "pixels a side"
                )

    def refuse_start(self) -> NoReturn:
        """
        Raises:
            InvalidRequest: this family does not start from pictures.
        """
        raise InvalidRequest(
            f"{self.name} makes pictures from text only here: leave out the start image, latents and mask, or use "
            "one of z-image, lumina-image-2 and lumina-next"
        )

    # --- once loaded ------------------------------------------------------------------------

    def prepare(self, components: Components) -> None:
        """Gives the loaded modules faster ways to compute the same. Parameters and their names stay as they are."""
        quicken(components.vae)

    # --- text -------------------------------------------------------------------------------

    @abstractmethod
    def template(self, components: Components, prompt: str, *, negative: bool) -> str:
        """The text that is tokenized for `prompt`."""

    def tokenize(self, components: Components, prompt: str, *, negative: bool = False) -> torch.Tensor:
        """-> token ids [1, tokens], whole.

        Raises:
            InvalidRequest: more tokens than the model was made for, in numbers: nothing is ever cut. None at all, where
                the model needs one.
            MismatchedModel: a token that the text encoder does not have.
        """
        tokens = tokens_of(components.tokenizer, self.template(components, prompt, negative=negative))
        highest, words = max(tokens, default=0), components.text_encoder.config.vocab_size
        if highest >= words:
            raise MismatchedModel(
                f"the tokenizer {components.tokenizer.name_or_path} gives token {highest}, and the text encoder has "
                f"{words}, from 0 on: they do not belong together. Use the tokenizer that the text encoder came with"
            )
        if not tokens and not self.empty_texts:
            remedy = "say what the picture should not show, or set guidance to" if negative else "say what it shows"
            raise InvalidRequest(
                f"the {'negative ' if negative else ''}prompt {prompt!r} has no tokens, and {self.name} needs one: "
                "this model's tokenizer puts no BOS token first, as the published one does. Use that tokenizer, or "
                f"{remedy}{f' {self.guidance_off:g}' if negative else ''}"
            )
        if len(tokens) > self.max_tokens:
            frame = tokens_of(components.tokenizer, self.template(components, "", negative=negative))
            start = prompt if len(prompt) <= 40 else prompt[:40] + "..."
            raise InvalidRequest(
                f"the {'negative ' if negative else ''}prompt {start!r} is {len(tokens)} tokens long with the "
                f"{len(frame)} of {self.name}'s template; the limit is {self.max_tokens}. "
                f"Shorten it by about {len(tokens) - self.max_tokens} tokens"
            )
        return torch.tensor([tokens], dtype=torch.long)

    @torch.no_grad()
    def encode(self, components: Components, prompts: Sequence[str], negatives: Sequence[str] | None) -> Conditioning:
        """Text features of the last layer but one, as all families here use.

        Each prompt runs alone and unpadded, so its features do not depend on its neighbours; the
        text encoders are causal, so this equals what padding on the right would give. The last layer never runs.
        """
        token_ids = [self.tokenize(components, p) for p in prompts]
        negative_ids = None if negatives is None else [self.tokenize(components, n, negative=True) for n in negatives]

        def features(ids: torch.Tensor) -> torch.Tensor:
            encoder = components.text_encoder
            if not ids.shape[1]:
                return torch.zeros(0, encoder.config.hidden_size, device=encoder.device, dtype=encoder.dtype)
            return last_but_one(encoder, ids)

        return Conditioning(
            tuple(prompts),
            tuple(map(features, token_ids)),
            None if negative_ids is None else tuple(map(features, negative_ids)),
        )

    # --- sampling ---------------------------------------------------------------------------

    @abstractmethod
    def set_timesteps(self, scheduler: Any, steps: int, latents: torch.Tensor) -> None:
        """Fills `scheduler.timesteps` as this family's diffusers pipeline does, for latents of this shape."""

    @abstractmethod
    def predictor(self, components: Components, conditioning: Conditioning, guidance: float, shape: torch.Size):
        """Does once what does not depend on the step; -> the `Predictor` that the denoising loop calls."""

    def guided(self, guidance: float) -> bool:
        return guidance > self.guidance_off

    def cfg(self, guidance: float) -> float:
        """ComfyUI's cfg for the same picture: 1 is off. The Lumina families count as ComfyUI does."""
        return guidance if self.guided(guidance) else 1.0

    # --- latents ----------------------------------------------------------------------------
    # At the border latents are raw VAE space; the model's own scale is (raw - shift) * scaling.

    def to_model(self, vae: Any, raw: torch.Tensor) -> torch.Tensor:
        return (raw - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def to_raw(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """
    Raises:
        DamagedFile: the tokenizer fails.
    """
    try:
        return tokenizer(text).input_ids
    except BaseException as error:
        # A panic of Rust code is no Exception, and says so in its name only.
        if ran_out(error) or not (isinstance(error, Exception) or "Panic" in type(error).__name__):
            raise
        raise DamagedFile(
            f"the tokenizer {tokenizer.name_or_path} fails: {str(error)[:300]}. Download it again"
        ) from error


class _Reached(Exception):
    """The text encoder has come to its last layer, with these hidden states."""


def last_but_one(text_encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    """token ids [1, tokens] -> what goes into the last layer, [tokens, width]: `hidden_states[-2]` of transformers."""

    def stop(layer: torch.nn.Module, arguments: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        raise _Reached(arguments[0] if arguments else named["hidden_states"])

    body = text_encoder.base_model  # without a head, if it has one
    # First, before the hook of a placement brings the layer's weights.
    handle = body.layers[-1].register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        body(input_ids=ids.to(text_encoder.device), use_cache=False)
    except _Reached as reached:
        return reached.args[0][0]
    finally:
        handle.remove()
    raise AssertionError("a text encoder that does not run its last layer")


def pad_features(features: Sequence[torch.Tensor], transformer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [tokens_i, width] of several prompts -> ([B, longest, width], mask [B, longest], 1 where real),
    where the transformer is and in its precision."""
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    padded = padded.to(transformer.device, transformer.dtype)
    lengths = torch.tensor([len(f) for f in features], device=padded.device)
    mask = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    return padded, mask.long()


def warn_unused_negative(family: Family, guidance: float) -> None:
    warnings.warn(
        f"the negative prompt has no effect at guidance {guidance:g}: {family.name} reads it only above "
        f"{family.guidance_off:g}",
        CandelaWarning,
        stacklevel=4,
    )
