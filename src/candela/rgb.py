"""Any picture that PIL opens, as 8-bit RGB that looks the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from candela.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL import Image

WHITE = (255, 255, 255)  # behind what is transparent
UNSCALED = {"I": "32-bit integers", "F": "floating-point numbers"}  # which of them is white, no file says
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def as_rgb(image: Image.Image) -> Image.Image:
    """`image` itself if it is RGB, else a copy, with its file name. 16-bit greys become 8-bit ones, and what is
    transparent lies on white. (PIL's own conversion takes every grey above 255 for white, and drops the alpha.)

    Raises:
        InvalidRequest: pixels of which nobody knows what is white; pixels that cannot be read.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    name = getattr(image, "filename", "")
    subject = f"the start image {name}" if name else "the start image"
    if kind := UNSCALED.get(image.mode) if not _sixteen_bit(image) else None:
        raise InvalidRequest(
            f"{subject} has pixels of {kind} (mode {image.mode}), and nothing says which is white: save it with 8 or "
            "16 bits, as PNG"
        )
    image.load()
    try:
        made = _grey_of_16_bits(image) if _sixteen_bit(image) else _converted(image)
    except ValueError as error:  # a mode that PIL has no conversion for: LAB
        raise InvalidRequest(
            f"{subject} has the mode {image.mode}, which PIL does not turn into RGB: save it as PNG"
        ) from error
    if name:
        vars(made)["filename"] = name
    return made


def _sixteen_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # the latter: Pillow 10


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image as Images

    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Images.fromarray(grey).convert("RGB")


def _converted(image: Image.Image) -> Image.Image:
    from PIL import Image as Images

    if image.mode not in ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode == "La":  # alpha already multiplied in
        image = image.convert("LA")
    layer = image.convert("RGBA")
    return Images.alpha_composite(Images.new("RGBA", layer.size, (*WHITE, 255)), layer).convert("RGB")
