"""What a caller may ask for, checked as soon as it is said."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from candela.errors import InvalidRequest
from candela.rgb import as_rgb

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from candela.families import Defaults, Family

MAX_SEED = 2**64 - 1  # what torch.Generator and ComfyUI take
MAX_SIDE = 16384
MAX_IMAGES = 4096
MAX_TEXT = 100_000  # characters; no model here reads more than 512 tokens, and the longest tokens are of 128
DEFAULT_STRENGTH = 0.6  # as in diffusers' image-to-image pipelines


@dataclass(frozen=True, eq=False)
class Request:
    """One or several pictures. What is None takes the model's default.

    Picture k shows prompt k // count and is drawn from seed + k, or from its own seed where each is given.

    Attributes:
        prompt: one text, or a sequence of them.
        negative_prompt: one text for all prompts, or one for each; read only where guidance is on.
        width, height: pixels, multiples of 16 for nearly every model. With `image`, its own size unless given.
        steps: model evaluations, at least 1.
        guidance: in the family's own convention; 0 is off for Z-Image, 1 for Lumina.
        seed: 0 to 2**64 - 1: the first picture's, or a sequence of one for each picture.
        count: pictures per prompt.
        image: a picture to start from (image-to-image), of any mode of PIL: here it becomes RGB (`rgb.as_rgb`: what is
            transparent lies on white). It is resized only if a size is given.
        latents: the same as raw VAE latents, float [1 or pictures, C, height / 8, width / 8]; excludes `image`. (8: the
            pixels a side of a latent; a few VAEs have more or fewer.)
        strength: how much of the way from pure noise is walked anew: 1 ignores the start, 0.5 keeps its layout.
            By default 0.6 with a start, 1 with a mask.
        mask: float [1 or pictures, 1, height / 8, width / 8] in 0..1, 1 = repaint; needs `image` or `latents`.

    Raises:
        InvalidRequest: at construction, for what is wrong whatever the model.
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | Sequence[int] = 0
    count: int = 1
    image: Image.Image | None = None
    latents: torch.Tensor | None = None
    strength: float | None = None
    mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        prompts = (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)
        if not prompts:
            raise InvalidRequest("the list of prompts is empty: give at least one prompt")
        _check_texts("prompt", prompts)
        negatives = self.negative_prompt
        if negatives is not None:
            negatives = (negatives,) * len(prompts) if isinstance(negatives, str) else tuple(negatives)
            _check_texts("negative prompt", negatives)
            if len(negatives) != len(prompts):
                raise InvalidRequest(
                    f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one for all, or one for each"
                )
        object.__setattr__(self, "prompt", prompts)
        object.__setattr__(self, "negative_prompt", negatives)
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                self._integer(name, 1, MAX_SIDE, "pixels")
        if self.steps is not None:
            self._integer("steps", 1, 1000, "a model distilled to few steps needs 4 to 8, others 20 to 50")
        self._integer("count", 1, MAX_IMAGES, "pictures per prompt")
        self._check_seed()
        self._number("guidance", 0.0, 100.0)
        self._number("strength", 0.0, 1.0)
        self._check_start()

    @property
    def prompts(self) -> tuple[str, ...]:
        """`prompt` as a tuple, which it is once checked."""
        return cast("tuple[str, ...]", self.prompt)

    @property
    def negatives(self) -> tuple[str, ...] | None:
        """`negative_prompt` as one text per prompt, or None."""
        return cast("tuple[str, ...] | None", self.negative_prompt)

    @property
    def total(self) -> int:
        """How many pictures this asks for."""
        return len(self.prompt) * self.count

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        if isinstance(self.seed, int):
            return tuple(self.seed + k for k in range(self.total))
        return tuple(self.seed)

    @property
    def started(self) -> bool:
        """Is there something to start from?"""
        return self.image is not None or self.latents is not None

    def alone(self, index: int) -> Request:
        """The request for picture `index` by itself: the same one, within rounding."""
        prompt = index // self.count
        negative = self.negatives[prompt] if self.negatives else None

        def own(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return tensor[index : index + 1] if tensor is not None and len(tensor) > 1 else tensor

        return dataclasses.replace(
            self,
            prompt=self.prompts[prompt],
            negative_prompt=negative,
            seed=self.seeds[index],
            count=1,
            latents=own(self.latents),
            mask=own(self.mask),
        )

    def resolved(self, family: Family, defaults: Defaults) -> Request:
        """This request with every open setting filled in, checked against what `family` can do.

        Raises:
            InvalidRequest: a size the family cannot make; a strength that leaves no step.
        """
        if self.started and not family.image_to_image:
            family.refuse_start()
        width, height = self.width, self.height
        if self.image is not None:
            width, height = width or self.image.width, height or self.image.height
            multiple = family.size_multiple
            if (self.width is None and width % multiple) or (self.height is None and height % multiple):
                highest = family.max_side // multiple * multiple
                near = [min(max(multiple, round(side / multiple) * multiple), highest) for side in self.image.size]
                raise InvalidRequest(
                    f"the start image is {self.image.width}x{self.image.height}; sides must be multiples of "
                    f"{multiple}. Ask for width {near[0]} and height {near[1]} to have it resized"
                )
        if self.latents is not None:
            own = tuple(side * family.latent_factor for side in (self.latents.shape[3], self.latents.shape[2]))
            width, height = width or own[0], height or own[1]
            if own != (width, height):
                raise InvalidRequest(
                    f"latents of {self.latents.shape[3]}x{self.latents.shape[2]} make a picture of "
                    f"{own[0]}x{own[1]}, not {width}x{height}"
                )
        strength = self.strength
        if strength is None:
            strength = DEFAULT_STRENGTH if self.started and self.mask is None else 1.0
        full = dataclasses.replace(
            self,
            width=width or defaults.width,
            height=height or defaults.height,
            steps=self.steps or defaults.steps,
            guidance=self.guidance if self.guidance is not None else defaults.guidance,
            strength=strength,
        )
        assert full.width and full.height and full.steps
        family.check_size(full.width, full.height)
        if self.started and skipped_steps(full.steps, strength) == full.steps:
            raise InvalidRequest(
                f"strength {strength:g} leaves none of {full.steps} steps to run: use at least {1 / full.steps:.3g}"
            )
        return full

    def _integer(self, name: str, low: int, high: int, remark: str) -> None:
        object.__setattr__(self, name, _whole(name, getattr(self, name), low, high, remark))

    def _check_seed(self) -> None:
        def checked(value: Any) -> int:
            return _whole("seed", value, 0, MAX_SEED, "2**64 - 1 is the last")

        if isinstance(self.seed, Sequence) and not isinstance(self.seed, str):
            object.__setattr__(self, "seed", tuple(map(checked, self.seed)))
            if len(self.seeds) != self.total:
                raise InvalidRequest(
                    f"{len(self.seeds)} seeds for {self.total} pictures: give the first one's seed, or one for each"
                )
        else:
            first = checked(self.seed)
            object.__setattr__(self, "seed", first)
            if first + self.total - 1 > MAX_SEED:
                raise InvalidRequest(
                    f"seed {first} is out of range for {self.total} pictures: picture k takes seed + k, "
                    f"so the highest is {MAX_SEED - self.total + 1}"
                )

    def _number(self, name: str, low: float, high: float) -> None:
        value: Any = getattr(self, name)
        if value is None:
            return
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InvalidRequest(f"{name} must be a number, not {value!r}") from None
        if not (math.isfinite(number) and low <= number <= high):
            raise InvalidRequest(f"{name} {number:g} is out of range: {low:g} to {high:g}")
        object.__setattr__(self, name, number)

    def _check_image(self) -> None:
        from PIL import Image

        if not isinstance(self.image, Image.Image):
            kind = type(self.image).__name__
            raise InvalidRequest(f"image must be a picture of PIL, not {kind}: open a file with PIL.Image.open")
        try:
            self.image.load()  # PIL reads a file's pixels only now
            object.__setattr__(self, "image", as_rgb(self.image))
        except InvalidRequest:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise InvalidRequest(f"the start image cannot be read as a picture ({error})") from error

    def _check_start(self) -> None:
        if self.image is not None:
            self._check_image()
        if self.image is not None and self.latents is not None:
            raise InvalidRequest("both image and latents are given to start from: give one of them")
        if self.strength == 0.0:
            raise InvalidRequest("strength 0 leaves no step to run: use more than 0, up to 1")
        if self.strength is not None and self.strength < 1.0 and not self.started:
            raise InvalidRequest(f"strength {self.strength:g} needs an image or latents to start from")
        if self.mask is not None and not self.started:
            raise InvalidRequest("a mask needs an image or latents to keep outside of it")
        for name, channels in (("latents", None), ("mask", 1)):
            value = getattr(self, name)
            if value is None:
                continue
            shape = tuple(value.shape)
            if len(shape) != 4 or shape[0] not in (1, self.total) or (channels and shape[1] != channels):
                wanted = f"[1 or {self.total}, {channels or 'C'}, height / 8, width / 8]"
                raise InvalidRequest(f"{name} must have the shape {wanted}, not {list(shape)}")


def skipped_steps(steps: int, strength: float) -> int:
    """How many of the first steps image-to-image leaves out, as diffusers' pipelines count them."""
    return int(max(steps - min(steps * strength, steps), 0))


def _whole(name: str, value: Any, low: int, high: int, remark: str) -> int:
    try:
        number = operator.index(value) if not isinstance(value, bool) else None
    except TypeError:
        number = None
    if number is None:
        raise InvalidRequest(f"{name} must be a whole number, not {value!r}")
    if not low <= number <= high:
        raise InvalidRequest(f"{name} {number} is out of range: {low} to {high} ({remark})")
    return number


def _check_texts(name: str, texts: tuple[Any, ...]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequest(f"a {name} must be text, not {type(text).__name__}: {text!r}")
        if len(text) > MAX_TEXT:
            raise InvalidRequest(f"a {name} of {len(text)} characters is too long: the limit is {MAX_TEXT}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"a {name} holds a character that is no text: {text!r} ({error.reason})") from error
