"""What a video file says of itself, and the one error of this room."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from gen1_train.errors import UserError
from gen1_train.remote import is_url

MAX_PIXELS = 2**26  # of a frame, 8192x8192; ours: a header that tells more is broken, or meant to fill the memory
ASPECTS = (1 / 4, 4.0)  # of a pixel; ours: a header that tells another is taken for broken, and the pixels for square
MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # ffmpeg's numbers of the ways to store colours that are converted right
BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid"}  # that an MP4 or MOV file has at its top

# A playlist that is named .mp4 must not make ffmpeg open other addresses, and other files are not what was asked for.
PLAYLISTS = {"concat", "dash", "hls", "image2", "rtsp", "sdp", "webm_dash_manifest"}  # ffmpeg's names of formats
ONLY_FILES, NO_OTHER = {"protocol_whitelist": "file"}, {"protocol_whitelist": "none"}


class VideoError(Exception):
    """A video or image file that cannot be read or written; the message is the reason, without the path.

    `transient` tells whether another try may succeed (a full disk, a lost mount, a killed decoder) or the file itself
    is at fault. `unsupported`: the decoder cannot read the file at all, it gave no frame and saw no damage; another
    one may.
    """

    def __init__(self, reason: str, transient: bool = False, unsupported: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient
        self.unsupported = unsupported


@dataclass(frozen=True)
class VideoInfo:
    """What the header tells, checked by decoding one frame."""

    width: int  # pixels as displayed: after rotation, and stretched by pixel_aspect
    height: int  # pixels, after rotation
    fps: float  # mean frames a second
    frames: int | None  # as counted in the header; None where the container stores no count (Matroska, WebM)
    seconds: float | None  # duration by the header
    rotation: int  # degrees anticlockwise that the frames are turned by for display: 0, 90, 180 or 270
    codec: str  # ffmpeg's name of the decoder
    pixel_format: str  # ffmpeg's name, for example yuv420p
    pixel_aspect: float = 1.0  # width of a pixel over its height, after rotation

    @property
    def expected_frames(self) -> int:
        """The header's count, or duration times rate; 0 if the header tells neither."""
        return self.frames if self.frames is not None else int((self.seconds or 0) * self.fps + 0.5)


def read_header(path: str | Path) -> VideoInfo:
    """Reads the header and decodes the first frame. Raises VideoError.

    In this process: on files that nobody has checked use `gen1_train.video.decode.probe`.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise VideoError("no frame can be decoded", unsupported=True)
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError("the header has no frame rate")
        turns = quarter_turns(frame)
        width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        aspect = 1 / _pixel_aspect(stream) if turns % 2 else _pixel_aspect(stream)
        return VideoInfo(
            width=max(1, round(width * aspect)),
            height=height,
            fps=float(rate),
            frames=frame_count(stream),
            seconds=stream_seconds(container, stream) or _container_seconds(container),
            rotation=90 * turns,
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            pixel_aspect=aspect,
        )


@contextmanager
def open_container(path: str | Path) -> Iterator[InputContainer]:
    """An open PyAV container; whatever ffmpeg or the file system says inside the block becomes a VideoError.

    `path`: a local file, or an address with "://" that fsspec opens: only what is asked for is fetched.
    """
    from gen1_train.video.remote import open_remote

    with video_errors():
        # to open a file ffmpeg decodes some of it, and frames beyond the limit must not fill the memory even then
        options = {"max_pixels": str(MAX_PIXELS)}
        if is_url(path):
            with open_remote(str(path)) as stream, av.open(stream, "r", options=options | NO_OTHER) as container:
                yield _checked(container)
            return
        _check_file(path)
        try:
            # the absolute path keeps a colon in a name from being read as a protocol
            container = av.open(os.path.abspath(path), options=options | ONLY_FILES)
        except av.InvalidDataError:
            if _lacks_header(path):
                reason = "the file ends before its header (no moov box): a recording or a copy that was cut short"
                raise VideoError(reason) from None
            raise
        with container:
            yield _checked(container)


@contextmanager
def video_errors() -> Iterator[None]:
    """Turns the errors of ffmpeg and of the file system into VideoError."""
    try:
        yield
    except UserError as error:  # a package for this kind of address is missing
        raise VideoError(str(error)) from error
    except (av.DecoderNotFoundError, av.PatchWelcomeError) as error:
        raise VideoError(error.strerror or type(error).__name__, unsupported=True) from error
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise VideoError(reason, transient=isinstance(error, OSError)) from error


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream that a player would show (not cover art). Raises VideoError if there is none to decode."""
    streams = [stream for stream in container.streams.video if not is_cover_art(stream)]
    if not streams:
        raise VideoError("there is no video stream in it")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("there is no decoder for it", unsupported=True)
    pixels = context.width * context.height
    if not 0 < pixels <= MAX_PIXELS:  # 0: none is told, or ffmpeg has refused it by our limit
        told = f"{context.width}x{context.height} pixels" if pixels else "no size that can be used"
        raise VideoError(f"its header tells {told}: frames may have {MAX_PIXELS} pixels in all")
    if context.color_trc == ColorTrc.SMPTE2084:  # HLG is taken as it is: it was made to be shown so
        raise VideoError("it is HDR video (PQ, SMPTE 2084), whose colours would come out pale: tone-map it first")
    if context.colorspace not in MATRICES:
        raise VideoError(f"its colours are stored in a way that is not supported: colorspace {context.colorspace}")
    # one thread: more would make the frame at which a broken file fails a matter of luck
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}  # frames may be larger than the header tells
    return stream


def frame_count(stream: VideoStream) -> int | None:
    """Frames of the stream by its header, without those that an edit list hides; None if the header has no count."""
    hidden = sum(entry.is_discard for entry in stream.index_entries) if stream.frames else 0
    return stream.frames - hidden or None


def stream_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Duration of the video stream by the header; None if it tells only that of all streams together."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return _container_seconds(container) if len(container.streams) == 1 else None


def is_cover_art(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns (0..3) that bring a decoded frame upright."""
    return round(frame.rotation / 90) % 4


def _pixel_aspect(stream: VideoStream) -> float:
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if ASPECTS[0] <= aspect <= ASPECTS[1] else 1.0


def _container_seconds(container: InputContainer) -> float | None:
    return container.duration / av.time_base if container.duration else None


def _checked(container: InputContainer) -> InputContainer:
    if container.format.name in PLAYLISTS:
        raise VideoError("it is a list of other files and no video itself")
    return container


def _check_file(path: str | Path) -> None:
    """Raises VideoError or OSError for what ffmpeg would wait for, or would say little about."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("it is no regular file")
    if status.st_size == 0:
        raise VideoError("the file is empty")


def _lacks_header(path: str | Path) -> bool:
    """Whether it is an MP4 or MOV file without the box that describes it."""
    found = set()
    size = os.stat(path).st_size
    with open(path, "rb") as stream:
        offset = 0
        while offset + 8 <= size:
            stream.seek(offset)
            start = stream.read(16)
            length, kind = int.from_bytes(start[:4], "big"), start[4:8]
            if kind not in BOXES:
                break
            found.add(kind)
            if length == 1:  # then the length stands behind, in 64 bits
                length = int.from_bytes(start[8:16], "big")
            if length < 8:  # 0: the box goes to the end
                break
            offset += length
    return bool(found) and b"moov" not in found
