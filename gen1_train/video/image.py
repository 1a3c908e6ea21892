"""Image files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from gen1_train.video.probe import VideoError

SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that exchange width and height


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, by the header alone. Raises VideoError."""
    with _open(path) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        return (height, width) if sideways else (width, height)


def read_image(path: str | Path) -> np.ndarray:
    """uint8 RGB (h, w, 3), turned upright by its EXIF tag; transparent pixels come out white. Raises VideoError."""
    with _open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """An open image; whatever PIL or the file system says inside the block becomes a VideoError."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # a conversion to RGB would clip 16 bits to white
                raise VideoError(f"pixels of mode {image.mode}, more than 8 bits of grey, are not supported")
            yield image
    except Image.UnidentifiedImageError as error:
        raise VideoError("no image that PIL can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # the system's errors have a number, PIL's own OSErrors have none
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(reason, transient=getattr(error, "errno", None) is not None) from error
