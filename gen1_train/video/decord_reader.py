"""decord as a source of frames.

It is unmaintained: it hangs on some files, cannot read AV1, gives wrong frames after seeking and after damage, and
decodes ahead without bound. So it is asked only where PyAV cannot, in a child process (see sandbox.py), and only for
what it is known to do right: to decode a whole file from its start.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from gen1_train.video.frames import Converter, held_back
from gen1_train.video.probe import VideoError, frame_count, open_container, video_stream
from gen1_train.video.sandbox import alive

# pixel formats whose frames were seen to be equal, to the bit, to PyAV's; others (10 bits) differ by their conversion
FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuv444p"}


@dataclass
class DecordFrame:
    """A Frame that decord decoded; it comes converted and upright."""

    index: int
    seconds: float
    pixels: np.ndarray = field(repr=False)
    converter: Converter = field(repr=False)
    decoder: str = "decord"

    def rgb(self) -> np.ndarray:
        """See Frame."""
        return self.pixels

    def small(self) -> np.ndarray:
        """See Frame; this one is upright."""
        return self.converter.small(av.VideoFrame.from_ndarray(self.pixels, format="rgb24"))


def decord_frames(path: str | Path) -> Iterator[DecordFrame]:
    """See `read_frames`. Raises VideoError."""
    with open_container(path) as container:
        stream = video_stream(container)
        expected, context = frame_count(stream), stream.codec_context
        size, pixel_format = (context.height, context.width), context.pix_fmt
    if pixel_format not in FORMATS:
        raise VideoError(f"decord is not asked for {pixel_format}")
    try:
        reader, starts = _open(path)
        if expected not in (None, len(starts)):
            raise VideoError(f"the file ends early: {len(starts)} of {expected} frames")
        yield from held_back(_decoded(reader, starts, size), size[0] * size[1])
    except (VideoError, MemoryError):
        raise
    except Exception as error:  # decord's own error has no better base
        raise VideoError(f"decord: {_reason(error)}") from error


def _open(path: str | Path) -> tuple[Any, np.ndarray]:
    """A reader at its first frame, and the seconds at which the frames start."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # fault_tol: not one frame may be replaced by its neighbour; one thread: our own processes use the cores
    reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=1e-9)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if not (np.diff(starts) > 0).all():
        raise ValueError("the timestamps do not ascend")
    return reader, starts - starts[0]


def _decoded(reader: Any, starts: np.ndarray, size: tuple[int, int]) -> Iterator[DecordFrame]:
    """All frames, decoded once, from the start.

    Not by decord's indices and not by its skip_frames: both seek, and a seek in a video with open GOPs (H.265 cameras),
    or whose timestamps repeat, silently gives other frames than those asked for.
    """
    converter = Converter()
    for index, seconds in enumerate(starts):
        alive()
        pixels = reader.next().asnumpy()
        if pixels.shape not in ((*size, 3), (*reversed(size), 3)):  # for some widths decord gives four channels
            raise ValueError(f"frames of {pixels.shape}, and the header tells {size}")
        yield DecordFrame(index, float(seconds), pixels, converter)


def _reason(error: Exception) -> str:
    """decord's messages are long and begin with its source path; the last clause says what happened."""
    lines = str(error).strip().splitlines()
    return lines[0].rpartition("Check failed: ")[2][:200] if lines else type(error).__name__
