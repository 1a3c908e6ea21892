"""Masks: where a video is edited, from an image or a video of the input's aspect."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gen1_train.video.probe import VideoError
from gen1_train.video.selection import Selection
from gen1_train.video.stream import is_image, probe_input, read_selected

ASPECT = 0.01  # by which the aspects of mask and input may differ, as a share: sizes are whole pixels; ours
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # grey of red, green and blue, ITU-R BT.601


def read_mask(
    path: str | Path, selection: Selection, count: int, width: int, height: int, input_size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields `count` masks, float32 (height, width) in [0, 1], 1 = edit: the grey value over 255.

    An image serves all frames. Of a video the same frames are chosen as of the input, and there must be `count`. Both
    are resized and cropped as the input is, whose own size (width, height, as displayed) is `input_size`. Transparent
    pixels count as white. Raises VideoError: at once for another aspect than the input's or a file that cannot be
    read, and at the end of a video for another number of frames.
    """
    info = probe_input(path)
    aspect, wanted = info.width / info.height, input_size[0] / input_size[1]
    if abs(aspect / wanted - 1) > ASPECT:
        sizes = f"it is {info.width}x{info.height}, and the input is {input_size[0]}x{input_size[1]}"
        raise VideoError(f"{sizes}: a mask has the aspect of the input")
    if is_image(path):
        (frame,) = read_selected(path, Selection(), width, height)
        return itertools.repeat(_grey(frame.pixels), count)
    return _moving(path, selection, count, width, height)


def _moving(path: str | Path, selection: Selection, count: int, width: int, height: int) -> Iterator[np.ndarray]:
    found = 0
    for frame in read_selected(path, selection, width, height):
        found += 1  # those beyond the count too, to tell how many there are
        if found <= count:
            yield _grey(frame.pixels)
    if found != count:
        raise VideoError(f"it has {found} frames where the input has {count}: a mask has one for each, or is an image")


def _grey(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame.astype(np.float32) @ LUMA / 255, 0, 1)
