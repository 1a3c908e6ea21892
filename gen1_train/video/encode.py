"""Frames into a video file that browsers play."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from gen1_train.video.probe import VideoError, video_errors

BT709 = 1  # ffmpeg's number for matrix, primaries and transfer of HDTV; untagged files are guessed at by players


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 18) -> None:
    """Writes uint8 RGB frames (h, w, 3) as an H.264 MP4 (yuv420p, index in front), complete or not at all.

    An odd width or height is made even by repeating the last column or row. `crf`: x264's quality, lower is better.
    Raises VideoError: no frames, frames of several sizes, a full disk, a folder that is not there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with video_errors():
            _encode(temporary, frames, fps, crf)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float, crf: int) -> None:
    stream: VideoStream | None = None
    shape: tuple[int, ...] = ()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for frame in frames:
            if stream is None:
                shape = frame.shape
                stream = _add_stream(container, shape, fps, crf)
            if frame.shape != shape:
                raise VideoError(f"frames of several sizes: {shape} and {frame.shape}")
            even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        if stream is None:
            raise VideoError("there are no frames to write")
        container.mux(stream.encode())


def _add_stream(container: OutputContainer, shape: tuple[int, ...], fps: float, crf: int) -> VideoStream:
    # 1001: the denominator of 29.97 and its kin
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf)})
    stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    return stream
