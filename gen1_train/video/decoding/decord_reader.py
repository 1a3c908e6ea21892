"""Reads frames with decord.

decord is unmaintained: it hangs on some files, cannot read AV1, returns wrong frames after seeking and after damage,
and decodes ahead without limit. So it is used only if PyAV cannot read a file, in a child process (see sandbox.py),
and only for what is known to be correct: decoding a whole file from its start.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from gen1_train.video.decoding.container import open_container
from gen1_train.video.decoding.frames import UNSPECIFIED, Converter, delayed, is_hd
from gen1_train.video.decoding.length import frame_count
from gen1_train.video.decoding.sandbox import heartbeat
from gen1_train.video.decoding.streams import video_stream
from gen1_train.video.errors import VideoError

# pixel formats whose frames equal PyAV's bit for bit, by test; the conversion of others (10 bits) differs
FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuv444p"}


@dataclass
class DecordFrame:
    """A Frame decoded by decord, which converts it and turns it upright."""

    index: int
    seconds: float
    pixels: np.ndarray = field(repr=False)
    converter: Converter = field(repr=False)
    interlaced: bool = False
    decoder: str = "decord"

    def rgb(self) -> np.ndarray:
        """See Frame."""
        return self.pixels

    def small(self) -> np.ndarray:
        """See Frame; it is upright here."""
        return self.converter.small(av.VideoFrame.from_ndarray(self.pixels, format="rgb24"))


def decord_frames(path: str | Path) -> Iterator[DecordFrame]:
    """See `read_frames`. Raises VideoError."""
    with open_container(path) as container:
        stream = video_stream(container)
        expected = frame_count(stream)
        context = stream.codec_context
        size = (context.height, context.width)
        pixel_format = context.pix_fmt
        is_untagged_hd = context.colorspace == UNSPECIFIED and is_hd(context.width, context.height)
    if pixel_format not in FORMATS or is_untagged_hd:  # decord converts HD with the matrix of SD
        raise VideoError(f"decord is not used for {pixel_format} of {size[1]}x{size[0]}")
    try:
        reader, starts = _open(path)
        if expected not in (None, len(starts)):
            raise VideoError(f"the file ends early: {len(starts)} of {expected} frames")
        yield from delayed(_decoded(reader, starts, size), size[0] * size[1])
    except (VideoError, MemoryError):
        raise
    except Exception as error:  # decord's own error class has no narrower base
        raise VideoError(f"decord: {_reason(error)}") from error


def _open(path: str | Path) -> tuple[Any, np.ndarray]:
    """A reader at its first frame, and the start times of the frames in seconds."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # fault_tol: no frame may be replaced by its neighbor; one thread: our own processes use the cores
    reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=1e-9)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if not (np.diff(starts) > 0).all():
        raise ValueError("the timestamps are not ascending")
    return reader, starts - starts[0]


def _decoded(reader: Any, starts: np.ndarray, size: tuple[int, int]) -> Iterator[DecordFrame]:
    """All frames, decoded once, from the start.

    decord's indexing and its skip_frames are not used: both seek, and a seek in a video with open GOPs (H.265
    cameras) or with repeated timestamps silently returns wrong frames.
    """
    converter = Converter()
    for index, seconds in enumerate(starts):
        heartbeat()
        pixels = reader.next().asnumpy()
        if pixels.shape not in ((*size, 3), (*reversed(size), 3)):  # for some widths, decord returns four channels
            raise ValueError(f"frames of {pixels.shape}, but the header says {size}")
        yield DecordFrame(index, float(seconds), pixels, converter)


def _reason(error: Exception) -> str:
    """The last clause of a decord message, which names the cause; the rest is source paths."""
    lines = str(error).strip().splitlines()
    return lines[0].rpartition("Check failed: ")[2][:200] if lines else type(error).__name__
