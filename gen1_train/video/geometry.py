"""Buckets, and frames brought to their size."""

import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image


def parse_bucket(text: str) -> tuple[int, int]:
    """`"448x256"` -> (448, 256): width and height in pixels. Raises ValueError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise ValueError(f"{text!r} is no bucket; write WIDTHxHEIGHT, for example 448x256")
    return int(match[1]), int(match[2])


def nearest_bucket(width: int, height: int, buckets: Sequence[str]) -> str:
    """The bucket whose aspect is closest on a log scale to width x height as displayed; the first one of equals."""

    def distance(bucket: str) -> float:
        bucket_width, bucket_height = parse_bucket(bucket)
        return abs(math.log(width / height) - math.log(bucket_width / bucket_height))

    return min(buckets, key=distance)


def enlargement(width: float, height: float, to_width: int, to_height: int) -> float:
    """The factor by which `resize_and_crop` enlarges a frame of width x height as displayed; below 1 it shrinks."""
    return max(to_width / width, to_height / height)


def resize_and_crop(frames: np.ndarray, width: int, height: int, pixel_aspect: float = 1.0) -> np.ndarray:
    """uint8 frames (n, H, W, 3) -> (n, height, width, 3): the largest centred part of that aspect, resized.

    `pixel_aspect`: width of a pixel of the frames over its height; those that come out are square. Bicubic with
    antialiasing, in PIL's integer arithmetic: the same bytes on every machine.
    """
    rows, columns = frames.shape[1:3]
    scale = enlargement(columns * pixel_aspect, rows, width, height)
    left, top = (columns - width / scale / pixel_aspect) / 2, (rows - height / scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(columns - left, columns), min(rows - top, rows))
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))
        for frame in np.ascontiguousarray(frames)
    ]
    return np.stack(resized)
