"""Reads every image file that PIL can read as upright 8-bit sRGB, in a child process that a hostile file may crash."""

from pathlib import Path

import numpy as np

from gen1_train.video.decode import absolute, run_in_child


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, from the header alone; `path` may be a URL. Raises VideoError."""
    ((answer, _),) = run_in_child({"do": "image_size", "path": absolute(path)})
    width, height = answer["size"]
    return width, height


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image as uint8 sRGB (h, w, 3), rotated upright by its orientation; `path` may be a URL.

    Only the first picture of an animation or a file with several pages is read. Transparent pixels become white. 16-bit
    gray keeps its upper 8 bits. Colors are converted to sRGB by the profile in the file; without one, or with a broken
    one, the values are taken as sRGB, and CMYK is converted by formula. Raises VideoError, also for more than 2**27
    pixels, whose array would take more than 384 MiB.
    """
    ((_, pixels),) = run_in_child({"do": "image", "path": absolute(path)})
    assert pixels is not None
    return pixels
