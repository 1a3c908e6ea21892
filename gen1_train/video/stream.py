"""Streams the selected frames of a video (or of an image, a video of one frame) at a bucket's size.

Little of the video is in memory, however long and large it is: the child decodes, selects and resizes the frames.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gen1_train.video.decode import absolute, probe, run_in_child
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import Content, content_of
from gen1_train.video.selection import Selection

__all__ = ["SelectedFrame", "Selection", "expected_frames", "is_image", "output_fps", "probe_input", "read_selected"]


@dataclass(frozen=True)
class SelectedFrame:
    """A selected frame."""

    pixels: np.ndarray = field(repr=False)  # uint8 RGB (h, w, 3)
    seconds: float  # presentation time since the first selected frame
    index: int  # its number in the video
    source_seconds: float  # its presentation time in the video, since the video's first frame


def is_image(path: str | Path) -> bool:
    """Whether a file or URL is read as an image, decided by its content: an animated GIF is a video."""
    return content_of(path) is Content.IMAGE


def probe_input(path: str | Path) -> VideoInfo:
    """Reads the header, which is fast; an image is a video of one frame. Raises VideoError."""
    return probe(path)


def expected_frames(info: VideoInfo, selection: Selection) -> int | None:
    """The number of frames that `read_selected` will yield according to the header; None if it is unknown.

    Meant for a progress bar: a header may be wrong, and the number is approximate if the timestamps are uneven.
    """
    available = info.expected_frames - selection.start
    if available <= 0:
        return None
    count = math.ceil(available / selection.stride)
    if selection.fps is not None:
        count = math.ceil(available / info.fps * selection.fps - 1e-3)
    return count if selection.frames is None else min(count, selection.frames)


def output_fps(info: VideoInfo, selection: Selection) -> float:
    """Frames per second of the selected frames at the pace of the video (the mean, if the timestamps are uneven)."""
    return selection.fps or info.fps / selection.stride


def read_selected(path: str | Path, selection: Selection, width: int, height: int) -> Iterator[SelectedFrame]:
    """Yields the selected frames, upright, with square pixels, resized to width x height by `resize_and_crop`.

    Raises VideoError for a file that cannot be read, a start beyond its end, and a damaged file, at the first frame
    that is not known to be intact. Frames before the start are decoded too, because seeking is not exact in every
    file.
    """
    request = {"do": "select", "path": absolute(path), "selection": asdict(selection), "size": [width, height]}
    yielded = 0
    last = 0.0  # source_seconds of the last frame
    try:
        for header, pixels in run_in_child(request):
            assert pixels is not None
            yielded += 1
            last = header["source_seconds"]
            yield SelectedFrame(pixels, **header)
    except VideoError as error:
        raise _with_remedy(error, yielded, last) from error


def _with_remedy(error: VideoError, yielded: int, last: float) -> VideoError:
    """The error of a file that is damaged after some frames, with the remedy."""
    if yielded == 0:
        return error
    reason = f"{error}; it is intact up to {last:.2f} s: frames={yielded} stops before the damage"
    return VideoError(reason, error.transient, error.unsupported)
