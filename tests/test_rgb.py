"""Pictures of every mode of PIL become the RGB that they look like."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from candela.errors import InvalidRequest
from candela.rgb import as_rgb

RAMP = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


def of_mode(mode: str) -> Image.Image:
    """A ramp from black to white."""
    if mode.startswith("I;16"):
        values = np.asarray(RAMP).astype(">u2" if mode == "I;16B" else "<u2") * 257
        return Image.frombytes(mode, RAMP.size, values.tobytes())
    steps = {"La": ["LA"], "RGBa": ["RGBA"], "PA": ["LA"]}.get(mode, [])
    image = RAMP
    for step in [*steps, mode]:
        image = image.convert(step)
    return image


def through_png(image: Image.Image, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return Image.open(file)


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) - {"1", "I", "F", "LAB"}))
def test_the_same_picture_in_every_mode(mode):
    made = as_rgb(of_mode(mode))
    assert made.mode == "RGB"
    assert np.abs(np.asarray(made).astype(int) - np.asarray(RAMP.convert("RGB"))).max() <= 1


def test_black_and_white_and_lab():
    assert as_rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    grey = as_rgb(Image.new("LAB", (1, 1), (128, 128, 128))).getpixel((0, 0))
    assert max(grey) - min(grey) <= 3 and 100 < grey[0] < 140


def test_a_16_bit_grey_from_a_file():
    values = np.array([[0, 128, 257, 32767, 32896, 65535]], dtype=np.uint16)
    made = as_rgb(through_png(Image.fromarray(values)))
    assert np.asarray(made)[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 0, 0, 0), 255),
        ("RGBA", (200, 200, 200, 128), 227),
        ("LA", (0, 0), 255),
        ("LA", (0, 51), 204),
    ],
)
def test_what_is_transparent_lies_on_white(mode, colour, expected):
    for image in (Image.new(mode, (2, 2), colour), through_png(Image.new(mode, (2, 2), colour))):
        assert as_rgb(image).getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (Image.new("P", (2, 2), 0), 0),
        (Image.new("P", (2, 2), 0), bytes([0, 255])),
        (Image.new("L", (2, 2), 7), 7),
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.fromarray(np.full((2, 2), 500, np.uint16)), 500),
    ],
)
def test_a_transparent_colour_is_transparent(image, key):
    image.putpixel((1, 1), (9, 9, 9) if image.mode == "RGB" else 1)
    made = as_rgb(through_png(image, transparency=key))
    assert made.getpixel((0, 0)) == (255, 255, 255)
    assert made.getpixel((1, 1)) != (255, 255, 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode):
    with pytest.raises(
        InvalidRequest, match=rf"\(mode {mode}\), and nothing says which is white: save it with 8 or 16"
    ):
        as_rgb(RAMP.convert(mode))


def test_rgb_is_left_alone_and_the_file_name_stays(tmp_path):
    image = RAMP.convert("RGB")
    assert as_rgb(image) is image
    RAMP.convert("RGBA").save(tmp_path / "start.png")
    assert as_rgb(Image.open(tmp_path / "start.png")).filename == str(tmp_path / "start.png")
