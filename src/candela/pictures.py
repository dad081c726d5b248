"""Pictures from strangers, opened with limits: from a regular file, in a known format, of a size that fits memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from candela.errors import CandelaError
from candela.regular import open_regular

if TYPE_CHECKING:
    from PIL import Image

# PIL knows dozens more, and starts Ghostscript for one of them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 8192 * 8192  # the largest picture that a model here makes


@contextmanager
def opened(path: str | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The picture at `path`, its header read; what is done with it within is guarded likewise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a regular file, none of `formats`, too large, or damaged; in words.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd and can be read is nobody's business
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(
                        f"its {image.width}x{image.height} pixels are more than {MAX_PIXELS}; make it smaller first"
                    )
                yield image
    except (CandelaError, FileNotFoundError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"it is not of a format that is read: {', '.join(formats)}") from error
    except Exception as error:  # PIL raises nearly anything for a damaged file
        raise ValueError(getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__) from error
