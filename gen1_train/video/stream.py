"""The chosen frames of a video (or of an image, as a video of one frame), one after the other, at a bucket's size.

However long and large the video is, little of it is in memory: the frames are decoded, chosen and resized in the child.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gen1_train.video.decode import absolute, ask, probe
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.image import IMAGE_SUFFIXES, image_size, read_image
from gen1_train.video.probe import VideoError, VideoInfo
from gen1_train.video.selection import Selection

__all__ = ["SelectedFrame", "Selection", "expected_frames", "is_image", "output_fps", "probe_input", "read_selected"]

IMAGE_FPS = 25.0  # frames a second of an image as a video of one frame; ours


@dataclass(frozen=True)
class SelectedFrame:
    """A frame that was chosen."""

    pixels: np.ndarray = field(repr=False)  # uint8 RGB (h, w, 3)
    seconds: float  # when it is shown, since the first chosen frame
    index: int  # its number in the video
    source_seconds: float  # its presentation time in the video, since the video's first frame


def is_image(path: str | Path) -> bool:
    """Whether a file is read as an image, by its name."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def probe_input(path: str | Path) -> VideoInfo:
    """What the header tells; an image is a video of one frame. Cheap. Raises VideoError."""
    if not is_image(path):
        return probe(path)
    width, height = image_size(path)
    seconds = 1 / IMAGE_FPS
    return VideoInfo(width, height, IMAGE_FPS, 1, seconds, rotation=0, codec="image", pixel_format="rgb24")


def expected_frames(info: VideoInfo, selection: Selection) -> int | None:
    """How many frames `read_selected` will give, by the header alone; None if that does not tell.

    For a progress bar: a header may be wrong, and with timestamps that are uneven it is only near.
    """
    left = info.expected_frames - selection.start
    if left <= 0:
        return None
    count = math.ceil(left / selection.stride)
    if selection.fps is not None:
        count = math.ceil(left / info.fps * selection.fps - 1e-3)
    return count if selection.frames is None else min(count, selection.frames)


def output_fps(info: VideoInfo, selection: Selection) -> float:
    """Frames a second of the chosen frames at the pace of the video (mean, if the timestamps are uneven)."""
    return selection.fps or info.fps / selection.stride


def read_selected(path: str | Path, selection: Selection, width: int, height: int) -> Iterator[SelectedFrame]:
    """Yields the chosen frames as `resize_and_crop` brings them to width x height, upright and with square pixels.

    Raises VideoError: a file that cannot be read, a start beyond its end, and, at the first frame that is not known to
    be whole, a damaged file. Frames before the start are decoded too: seeking is not exact in every file.
    """
    if is_image(path):
        yield from _read_image(path, selection, width, height)
        return
    request = {"do": "select", "path": absolute(path), "selection": asdict(selection), "size": [width, height]}
    given, last = 0, 0.0
    try:
        for header, pixels in ask(request):
            assert pixels is not None
            given, last = given + 1, header["source_seconds"]
            yield SelectedFrame(pixels, **header)
    except VideoError as error:
        raise _with_mend(error, given, last) from error


def _with_mend(error: VideoError, given: int, last: float) -> VideoError:
    """The error of a file that broke on the way, with what can be done about it."""
    if given == 0:
        return error
    reason = f"{error}; it is whole up to {last:.2f} s: frames={given} takes what comes before the damage"
    return VideoError(reason, error.transient, error.unsupported)


def _read_image(path: str | Path, selection: Selection, width: int, height: int) -> Iterator[SelectedFrame]:
    if selection.start > 0:
        raise VideoError(f"start={selection.start} is beyond its end: it is an image, a video of 1 frame")
    yield SelectedFrame(resize_and_crop(read_image(path)[None], width, height)[0], 0.0, 0, 0.0)
