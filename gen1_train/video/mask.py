"""Masks, which say where a video is edited, from an image or a video of the input's aspect ratio."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gen1_train.video.errors import VideoError
from gen1_train.video.selection import Selection
from gen1_train.video.stream import probe_input, read_selected

ASPECT_TOLERANCE = 0.01  # relative difference of the aspect ratios of mask and input: sizes are whole pixels; ours
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue, ITU-R BT.601


def read_mask(
    path: str | Path, selection: Selection, count: int, width: int, height: int, input_size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields `count` masks, float32 (height, width) in [0, 1], where 1 means edit: the gray value over 255.

    An image is used for all frames. From a video, the same frames are selected as from the input, and there must be
    `count` of them. Both are resized and cropped like the input, whose own size (width, height, as displayed) is
    `input_size`. Transparent pixels count as white. Raises VideoError: immediately for a file that cannot be read or
    whose aspect ratio is not the input's, and at the end of a video with another number of frames.
    """
    info = probe_input(path)
    aspect = info.width / info.height
    input_aspect = input_size[0] / input_size[1]
    if abs(aspect / input_aspect - 1) > ASPECT_TOLERANCE:
        sizes = f"it is {info.width}x{info.height}, and the input is {input_size[0]}x{input_size[1]}"
        raise VideoError(f"{sizes}: a mask must have the aspect ratio of the input")
    if info.is_image:
        (frame,) = read_selected(path, Selection(), width, height)
        return itertools.repeat(gray(frame.pixels), count)
    return _read_video(path, selection, count, width, height)


def _read_video(path: str | Path, selection: Selection, count: int, width: int, height: int) -> Iterator[np.ndarray]:
    frames = 0
    for frame in read_selected(path, selection, width, height):
        frames += 1  # also beyond `count`, for the error message
        if frames <= count:
            yield gray(frame.pixels)
    if frames != count:
        raise VideoError(
            f"it has {frames} frames where the input has {count}: a mask must have one for each, or be an image"
        )


def gray(frame: np.ndarray) -> np.ndarray:
    """Returns the gray values (…, h, w) of uint8 pixels (…, h, w, 3) in [0, 1]."""
    return np.clip(frame.astype(np.float32) @ LUMA / 255, 0, 1)
