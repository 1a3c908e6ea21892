"""Decodes the frames of a video file one by one, and converts a frame only when its pixels are read.

Runs in a child process (see sandbox.py), so its imports are small.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from gen1_train.video.decoding.container import open_container, reported
from gen1_train.video.decoding.deinterlace import deinterlaced
from gen1_train.video.decoding.length import END_TOLERANCE, frame_count, stream_end
from gen1_train.video.decoding.orientation import Orientation
from gen1_train.video.decoding.sandbox import heartbeat
from gen1_train.video.decoding.streams import video_stream
from gen1_train.video.decoding.timeline import Timeline
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import ends_early

SMALL = 128  # pixels, the longer side of Frame.small; ours: enough to detect cuts, motion and black frames
DECODERS = ("pyav", "decord")

# If a file is truncated, its last packet may be incomplete and decode to garbage without an error. Codecs delay at most
# 16 frames for reordering, so only frames older than that are known to be intact. The larger the frames, the fewer a
# codec may delay: 8 for 8K video.
REORDERING = 16
REORDERING_PIXELS = 2**28
UNTIMED = {"avi"}  # ffmpeg's names of formats without presentation times; its guesses are wrong with B-frames

UNSPECIFIED = 2  # ffmpeg's number of the color matrix of a file that names none

Item = TypeVar("Item")


class Frame(Protocol):
    """A decoded frame."""

    index: int  # from 0, in display order
    seconds: float  # presentation time since the first frame
    decoder: str  # one of DECODERS
    interlaced: bool  # in the file; here it is deinterlaced

    def rgb(self) -> np.ndarray:
        """uint8 (h, w, 3), upright (rotation tag applied); transparent pixels become white. Raises VideoError."""

    def small(self) -> np.ndarray:
        """uint8 BGR (h', w', 3), the longer side at most SMALL, never enlarged and not rotated. Raises VideoError.

        Fast, for detecting cuts and motion; not meant as training data.
        """


def delayed(frames: Iterator[Item], pixels: int) -> Iterator[Item]:
    """Yields each frame, of `pixels` pixels, after enough later frames were decoded or the stream ended cleanly."""
    depth = min(REORDERING, max(1, REORDERING_PIXELS // max(pixels, 1)))
    pending: deque[Item] = deque()
    for frame in frames:
        pending.append(frame)
        if len(pending) > depth:
            yield pending.popleft()
    yield from pending


def small_size(width: int, height: int) -> tuple[int, int]:
    """The width and height of Frame.small."""
    scale = min(1.0, SMALL / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def is_hd(width: int, height: int) -> bool:
    """Whether players show video of this coded size with the colors of HDTV if it names none, as mpv and VLC do."""
    return width >= 1280 or height > 576


class Converter:
    """Converts the pictures of one video to arrays.

    All pictures share it, because setting up a conversion costs more than the conversion. It uses one thread: our own
    processes use the cores.
    """

    def __init__(self) -> None:
        self._full = VideoReformatter()
        self._small = VideoReformatter()

    def rgb(self, picture: av.VideoFrame) -> np.ndarray:
        if not _has_alpha(picture):
            return self._convert(self._full, picture, format="rgb24")
        pixels = self._convert(self._full, picture, format="rgba").astype(np.uint16)
        opacity = pixels[..., 3:]
        return ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)

    def small(self, picture: av.VideoFrame) -> np.ndarray:
        size = small_size(picture.width, picture.height)
        if _has_alpha(picture):
            picture = av.VideoFrame.from_ndarray(self.rgb(picture), format="rgb24")
        # area: every pixel contributes, so that fine patterns do not flicker
        options = {"width": size[0], "height": size[1], "interpolation": Interpolation.AREA}
        return self._convert(self._small, picture, format="bgr24", **options)

    @staticmethod
    def _convert(reformatter: VideoReformatter, picture: av.VideoFrame, **options: Any) -> np.ndarray:
        try:
            return reformatter.reformat(picture, threads=1, **options).to_ndarray()
        except av.FFmpegError as error:
            raise VideoError(f"its pixels cannot be converted: {error.strerror}") from error


def _has_alpha(picture: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in picture.format.components)


@dataclass
class PyAVFrame:
    """A Frame decoded by PyAV."""

    index: int
    seconds: float
    picture: av.VideoFrame = field(repr=False)
    converter: Converter = field(repr=False)
    interlaced: bool = False
    decoder: str = "pyav"

    def rgb(self) -> np.ndarray:
        """See Frame."""
        return Orientation.of(self.picture).apply(self.converter.rgb(self.picture))

    def small(self) -> np.ndarray:
        """See Frame."""
        return self.converter.small(self.picture)


def pyav_frames(path: str | Path) -> Iterator[PyAVFrame]:
    """See `read_frames`. Raises VideoError."""
    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        yield from delayed(_complete(path, container, stream), context.width * context.height)


def _complete(path: str | Path, container: InputContainer, stream: VideoStream) -> Iterator[PyAVFrame]:
    """All frames, see `_decoded`. Raises VideoError at the end of a GIF that was cut off."""
    yield from _decoded(container, stream)
    if container.format.name == "gif" and ends_early(path):
        raise VideoError("the file ends early, within a picture")


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[PyAVFrame]:
    """All frames in display order. Raises VideoError at the first damaged one, or at the end if some are missing."""
    converter = Converter()
    clock = _Clock(float(stream.average_rate or stream.guessed_rate or 25), container.format.name in UNTIMED)
    timeline = Timeline(container, stream)
    indexed = frame_count(stream)
    try:
        timed = _checked(_pictures(timeline, clock), clock)
        for index, (picture, seconds, interlaced) in enumerate(deinterlaced(timed)):
            yield PyAVFrame(index, seconds, picture, converter, interlaced)
    except av.FFmpegError as error:
        if clock.count == 0:
            raise
        reason = f"broken after {clock.count} frames: {error.strerror}"
        raise VideoError(reason, transient=isinstance(error, OSError)) from error
    indexed = max(indexed or 0, frame_count(stream) or 0)  # the index of a fragmented file is complete now
    expected = max(indexed - timeline.undecodable, 0)
    clock.check(expected or None, None if timeline.jumps else stream_end(container, stream))


def _checked(pictures: Iterator[av.VideoFrame], clock: "_Clock") -> Iterator[tuple[av.VideoFrame, float]]:
    """Yields each picture with its seconds. Raises VideoError for a damaged one, and if their size changes."""
    size: tuple[int, int] | None = None
    for picture in pictures:
        heartbeat()
        size = size or (picture.width, picture.height)
        if picture.is_corrupt:
            raise VideoError(f"damaged at frame {clock.count}")
        if (picture.width, picture.height) != size:
            raise VideoError("the size of the frames changes within the video")
        if picture.colorspace == UNSPECIFIED and not picture.format.is_rgb and is_hd(*size):
            picture.colorspace = Colorspace.ITU709
        yield picture, clock.tick(picture)


def _pictures(timeline: Timeline, clock: "_Clock") -> Iterator[av.VideoFrame]:
    """The pictures from the decoder. Raises VideoError."""
    decoded = timeline.pictures()
    while True:
        with reported(f"after {clock.count} frames"):
            picture = next(decoded, None)
        if picture is None:
            return
        yield picture


@dataclass
class _Clock:
    """Counts the frames of a video and keeps track of their time."""

    rate: float  # frames per second, for a file whose frames have no time
    untimed: bool = False  # the file's format is one of UNTIMED
    count: int = 0
    start: float | None = None  # the timestamp of the first frame
    seconds: float = 0.0  # from the first frame to the last one so far
    longest: float = 0.0  # maximum seconds from one frame to the next

    def tick(self, picture: av.VideoFrame) -> float:
        """Counts one more frame and returns its seconds, which never decrease."""
        time: float | None = picture.time
        if self.untimed:  # then a frame is due at the time of the packet after which the decoder returns it
            dts, base = picture.dts, picture.time_base
            time = None if dts is None or base is None else float(dts * base)
        self.start = time if self.start is None else self.start
        seconds = self.count / self.rate if time is None or self.start is None else time - self.start
        seconds = max(self.seconds, seconds)
        self.longest = max(self.longest, seconds - self.seconds)
        self.seconds = seconds
        self.count += 1
        return seconds

    def check(self, frames: int | None, end: float | None) -> None:
        """Raises VideoError if the file ended before the header's frame count or, without one, its end, a timestamp."""
        if self.count == 0:
            raise VideoError("no frame can be decoded", unsupported=True)
        if frames is not None:
            if self.count < frames:
                raise VideoError(f"the file ends early: {self.count} of {frames} frames can be decoded")
        elif end is not None and self.count > 1:
            duration = end - (self.start or 0.0)
            if self.seconds + max(END_TOLERANCE, 2 * self.longest) < duration:
                raise VideoError(f"the file ends early: its last frame is at {self.seconds:.1f} of {duration:.1f} s")
