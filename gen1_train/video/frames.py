"""The frames of a video file, one after the other, each converted only when somebody asks for its pixels.

Runs in a child process (see sandbox.py), so it imports light things only.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from gen1_train.video.probe import (
    VideoError,
    frame_count,
    open_container,
    quarter_turns,
    stream_seconds,
    video_stream,
)
from gen1_train.video.sandbox import alive

SMALL = 128  # pixels, the longer side of Frame.small; ours: enough to see cuts, motion and black
DECODERS = ("pyav", "decord")

# When a file ends before its header says so, its last packet may be cut in two and decode to garbage without an error.
# Codecs hold back at most 16 frames for reordering, so only frames older than that are known to be whole. The larger
# the frames, the fewer a codec may hold: 8 of 8K video.
REORDERING = 16
REORDERING_PIXELS = 2**28
UNTIMED = {"avi"}  # ffmpeg's names of formats without presentation times; it guesses them, wrongly with B-frames
LATE = 1.0  # seconds by which a video may end before the duration of its header; ours

Item = TypeVar("Item")


class Frame(Protocol):
    """A decoded frame."""

    index: int  # from 0, in the order of display
    seconds: float  # presentation time since the first frame
    decoder: str  # which of DECODERS it came from

    def rgb(self) -> np.ndarray:
        """uint8 (h, w, 3), upright (rotation tag applied); what is transparent comes out white. Raises VideoError."""

    def small(self) -> np.ndarray:
        """uint8 BGR (h', w', 3), the longer side at most SMALL, never enlarged; cheap. Not turned. Raises VideoError.

        For looking at, not for learning from.
        """


def read_frames(path: str | Path, decoder: str = "pyav") -> Iterator[Frame]:
    """Every frame of the video stream, once, in order. Raises VideoError.

    That is raised at the first frame that is damaged, or at the end when there were fewer frames than the header
    counts. A frame is given only once REORDERING more were decoded, or the stream ended well.
    Raises ValueError for a decoder that there is not.
    """
    if decoder not in DECODERS:
        raise ValueError(f"{decoder!r} is no decoder; there are {', '.join(DECODERS)}")
    if decoder == "decord":
        from gen1_train.video.decord_reader import decord_frames

        return decord_frames(path)
    return _pyav_frames(path)


def read_any(path: str | Path, decoders: Sequence[str] = DECODERS) -> Iterator[Frame]:
    """Like `read_frames`, by the first decoder that can. Raises VideoError.

    PyAV's word is final, unless it cannot read the file at all: it sees damage that decord turns into wrong frames.
    Where decord fails, PyAV goes on from the same frame.
    """
    given = 0
    failures: dict[str, VideoError] = {}
    for decoder in decoders:
        try:
            for frame in read_frames(path, decoder):
                if frame.index == given:
                    given += 1
                    yield frame
            return
        except VideoError as error:
            failures[decoder] = error
            if decoder == "pyav" and not error.unsupported:
                break
    raise failures.get("pyav") or failures[decoders[-1]]


def held_back(frames: Iterator[Item], pixels: int) -> Iterator[Item]:
    """Gives each frame, of that many pixels, when enough others are there behind it, or the stream ended well."""
    depth = min(REORDERING, max(1, REORDERING_PIXELS // max(pixels, 1)))
    held: deque[Item] = deque()
    for frame in frames:
        held.append(frame)
        if len(held) > depth:
            yield held.popleft()
    yield from held


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of Frame.small."""
    scale = min(1.0, SMALL / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


class Converter:
    """Turns the pictures of one video into arrays.

    It is shared by all of them: setting up a conversion costs more than the conversion. One thread: our own processes
    use the cores.
    """

    def __init__(self) -> None:
        self._full, self._small = VideoReformatter(), VideoReformatter()

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
        # area: every pixel counts, so that fine patterns do not flicker
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
    """A Frame that PyAV decoded."""

    index: int
    seconds: float
    picture: av.VideoFrame = field(repr=False)
    converter: Converter = field(repr=False)
    decoder: str = "pyav"

    def rgb(self) -> np.ndarray:
        """See Frame."""
        return np.ascontiguousarray(np.rot90(self.converter.rgb(self.picture), quarter_turns(self.picture)))

    def small(self) -> np.ndarray:
        """See Frame."""
        return self.converter.small(self.picture)


def _pyav_frames(path: str | Path) -> Iterator[PyAVFrame]:
    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        yield from held_back(_decoded(container, stream), context.width * context.height)


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[PyAVFrame]:
    """All frames in the order of display. Raises VideoError at the first damaged one, or when some are missing."""
    converter = Converter()
    clock = _Clock(float(stream.average_rate or stream.guessed_rate or 25), container.format.name in UNTIMED)
    size: tuple[int, int] | None = None
    try:
        for picture in _pictures(container, stream, clock):
            alive()
            size = size or (picture.width, picture.height)
            if picture.is_corrupt:
                raise VideoError(f"damaged at frame {clock.count}")
            if (picture.width, picture.height) != size:
                raise VideoError("the size of the frames changes within the video")
            yield PyAVFrame(clock.count, clock.tick(picture), picture, converter)
    except av.FFmpegError as error:
        if clock.count == 0:
            raise
        reason = f"broken after {clock.count} frames: {error.strerror}"
        raise VideoError(reason, transient=isinstance(error, OSError)) from error
    clock.check(frame_count(stream), stream_seconds(container, stream))


def _pictures(container: InputContainer, stream: VideoStream, clock: "_Clock") -> Iterator[av.VideoFrame]:
    """What the decoder gives. Raises VideoError where Matroska's reader has skipped something.

    It goes on behind a damaged place, and only ffmpeg's log tells; other containers miss frames in their count.
    """
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    decoded = container.decode(stream)
    while True:
        with av.logging.Capture() as messages:
            picture = next(decoded, None)
        for _, source, message in messages:
            if source == "matroska,webm":
                raise VideoError(f"broken after {clock.count} frames: {message.strip()}")
        if picture is None:
            return
        yield picture


@dataclass
class _Clock:
    """Counts the frames of a video and keeps their time."""

    rate: float  # frames a second, for a file whose frames have no time
    untimed: bool = False  # the file's format is one of UNTIMED
    count: int = 0
    start: float | None = None  # the first frame's time in the file
    seconds: float = 0.0  # of the last frame, since the first one
    longest: float = 0.0  # seconds from one frame to the next

    def tick(self, picture: av.VideoFrame) -> float:
        """Takes one more frame and returns its seconds, which never go back."""
        time: float | None = picture.time
        if self.untimed:  # then a frame is shown when the packet comes behind which it is given
            dts, base = picture.dts, picture.time_base
            time = None if dts is None or base is None else float(dts * base)
        self.start = time if self.start is None else self.start
        seconds = self.count / self.rate if time is None or self.start is None else time - self.start
        seconds = max(self.seconds, seconds)
        self.longest = max(self.longest, seconds - self.seconds)
        self.seconds = seconds
        self.count += 1
        return seconds

    def check(self, frames: int | None, duration: float | None) -> None:
        """Raises VideoError if the file ended before its header says so: the count, or else the duration in seconds."""
        if self.count == 0:
            raise VideoError("no frame can be decoded", unsupported=True)
        if frames is not None:
            if self.count < frames:
                raise VideoError(f"the file ends early: {self.count} of {frames} frames can be decoded")
        elif duration is not None and self.count > 1 and self.seconds + max(LATE, 2 * self.longest) < duration:
            raise VideoError(f"the file ends early: its last frame is at {self.seconds:.1f} of {duration:.1f} s")
