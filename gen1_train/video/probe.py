"""What a video file says of itself, and the one error of this room."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# When a file ends before its header says so, its last packet may be cut in two and decode to garbage without an error.
# Codecs hold back at most 16 frames for reordering, so only frames older than that are known to be whole.
REORDERING = 16


class VideoError(Exception):
    """A video or image file that cannot be read or written; the message is the reason, without the path.

    `transient` tells whether another try may succeed (a full disk, a lost mount, a killed decoder) or the file itself
    is at fault.
    """

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


@dataclass(frozen=True)
class VideoInfo:
    """What the header tells, checked by decoding one frame."""

    width: int  # pixels, after rotation
    height: int  # pixels, after rotation
    fps: float  # mean frames a second
    frames: int | None  # as counted in the header; None where the container stores no count (Matroska, WebM)
    seconds: float | None  # duration by the header
    rotation: int  # degrees anticlockwise that the frames are turned by for display: 0, 90, 180 or 270
    codec: str  # ffmpeg's name of the decoder
    pixel_format: str  # ffmpeg's name, for example yuv420p

    @property
    def expected_frames(self) -> int:
        """The header's count, or duration times rate; 0 if the header tells neither."""
        return self.frames if self.frames is not None else int((self.seconds or 0) * self.fps + 0.5)


def probe(path: str | Path) -> VideoInfo:
    """Reads the header and decodes the first frame. Raises VideoError."""
    with open_container(path) as container:
        stream = video_stream(container)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise VideoError("no frame can be decoded")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError("the header has no frame rate")
        turned = quarter_turns(frame) % 2
        return VideoInfo(
            width=frame.height if turned else frame.width,
            height=frame.width if turned else frame.height,
            fps=float(rate),
            frames=stream.frames or None,
            seconds=_seconds(container, stream),
            rotation=90 * quarter_turns(frame),
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
        )


@contextmanager
def open_container(path: str | Path) -> Iterator[InputContainer]:
    """An open PyAV container; whatever ffmpeg or the file system says inside the block becomes a VideoError."""
    with video_errors():
        # Only this local file: a playlist that is named .mp4 must not make ffmpeg open other files or addresses.
        # The absolute path keeps a colon in a name from being read as a protocol.
        options = {"protocol_whitelist": "file"}
        with av.open(os.path.abspath(path), options=options) as container:
            yield container


@contextmanager
def video_errors() -> Iterator[None]:
    """Turns the errors of ffmpeg and of the file system into VideoError."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise VideoError(reason, transient=isinstance(error, OSError)) from error


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream that a player would show (not cover art). Raises VideoError if there is none."""
    streams = [stream for stream in container.streams.video if not is_cover_art(stream)]
    if not streams:
        raise VideoError("there is no video stream in it")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def is_cover_art(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns (0..3) that bring a decoded frame upright."""
    return round(frame.rotation / 90) % 4


def _seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None
