"""Buckets, and resizing frames to their size."""

import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

NAMED_CROP = 0.3  # a warning names a crop that loses more of the picture; ours


def parse_bucket(text: str) -> tuple[int, int]:
    """Parses `"448x256"` into (448, 256): width and height in pixels. Raises ValueError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise ValueError(f"{text!r} is not a bucket; write WIDTHxHEIGHT, for example 448x256")
    return int(match[1]), int(match[2])


def nearest_bucket(width: int, height: int, buckets: Sequence[str]) -> str:
    """The bucket whose aspect ratio is closest, on a log scale, to that of width x height as displayed.

    The first of several equally close buckets.
    """

    def distance(bucket: str) -> float:
        bucket_width, bucket_height = parse_bucket(bucket)
        return abs(math.log(width / height) - math.log(bucket_width / bucket_height))

    return min(buckets, key=distance)


def enlargement(width: float, height: float, to_width: int, to_height: int) -> float:
    """The factor by which `resize_and_crop` enlarges a frame of width x height as displayed; below 1, it shrinks."""
    return max(to_width / width, to_height / height)


def kept_share(width: float, height: float, to_width: int, to_height: int) -> float:
    """The share of the picture's area that `resize_and_crop` keeps of a frame of width x height as displayed."""
    return to_width * to_height / enlargement(width, height, to_width, to_height) ** 2 / (width * height)


def similar_bucket(width: float, height: float, pixels: int, multiple: int) -> str:
    """A bucket with the aspect ratio of width x height and about as many pixels; its sides are multiples of a number.

    It crops little, however long the picture is.
    """
    side = math.sqrt(pixels * width / height)
    sides = [max(1, round(length / multiple)) * multiple for length in (side, side * height / width)]
    return f"{sides[0]}x{sides[1]}"


def resize_and_crop(frames: np.ndarray, width: int, height: int, pixel_aspect: float = 1.0) -> np.ndarray:
    """Crops uint8 frames (n, H, W, 3) at the center to the target's aspect ratio, and resizes to (n, height, width, 3).

    `pixel_aspect`: the width of an input pixel over its height; output pixels are square. The filter is bicubic with
    antialiasing, in PIL's integer arithmetic: the bytes are the same on every machine.
    """
    rows, columns = frames.shape[1:3]
    scale = enlargement(columns * pixel_aspect, rows, width, height)
    left = (columns - width / scale / pixel_aspect) / 2
    top = (rows - height / scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(columns - left, columns), min(rows - top, rows))
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))
        for frame in np.ascontiguousarray(frames)
    ]
    return np.stack(resized)
