"""Frames into a video file that browsers play."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from gen1_train.files import whole_file
from gen1_train.video.audio import AudioSource, AudioTrack, open_audio
from gen1_train.video.probe import VideoError, video_errors
from gen1_train.video.selection import ROUNDING

BT709 = 1  # ffmpeg's number for matrix, primaries and transfer of HDTV; untagged files are guessed at by players
CLOCK = 90_000  # ticks a second, at least, in which the frames' times are written


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 18) -> None:
    """Writes uint8 RGB frames (h, w, 3), complete or not at all; see `VideoWriter`. Raises VideoError."""
    with VideoWriter(path, fps, crf) as writer:
        for frame in frames:
            writer.write(frame)


class VideoWriter:
    """An H.264 MP4 (yuv420p, index in front) that takes frames one by one, a context manager.

    At the end of the block the file is there, complete. If the block raises, or the file cannot be finished, nothing is
    left of it, and a file that was there before is as it was. An odd width or height is made even by repeating the last
    column or row. Raises VideoError, at once if the folder cannot be written to or the audio cannot be read, and later
    for no frames, frames of several sizes, a full disk. Errors of the block itself pass as they are.
    """

    def __init__(
        self, path: str | Path, fps: float | Fraction, crf: int = 18, audio_from: AudioSource | None = None
    ) -> None:
        """`fps`: frames a second; `crf`: x264's quality, lower is better; `audio_from`: what shall be heard."""
        self.path = Path(path)
        self.rate = Fraction(fps).limit_denominator(1001)  # the denominator of 29.97 and its kin
        # so that every frame of a constant rate falls on a tick
        self._tick = Fraction(1, self.rate.numerator * math.ceil(CLOCK / self.rate.numerator))
        self._crf, self._audio_from = crf, audio_from
        self._count, self._place, self._shape = 0, -1, (0, 0, 0)  # of the frames: how many; the last one's tick; shape
        self._stream: VideoStream | None = None
        self._audio: AudioTrack | None = None

    def __enter__(self) -> "VideoWriter":
        with video_errors(), ExitStack() as stack:
            if self._audio_from is not None:
                self._audio = open_audio(self._audio_from)
                if self._audio is not None:
                    stack.callback(self._audio.close)
            temporary = stack.enter_context(whole_file(self.path))
            temporary.touch()  # ffmpeg would say only after hours, at the first frame, that it cannot
            # the encoders' and the audio's first timestamps may be negative: an edit list hides what is before 0
            options = {"movflags": "+faststart", "avoid_negative_ts": "disabled"}
            container = av.open(str(temporary), "w", format="mp4", options=options)
            self._container = stack.enter_context(_closed(container))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with video_errors(), self._stack:
            if self._stream is None:
                raise VideoError("there are no frames to write")
            self._container.mux(self._stream.encode())
            if self._audio is not None:
                self._audio.mux_until((self._place + self._frame) * self._tick)
                self._audio.finish()

    def write(self, frame: np.ndarray, seconds: float | None = None) -> None:
        """Adds a uint8 RGB frame (h, w, 3), shown at `seconds` after the first one; None: at the constant rate.

        Seconds ascend. Those that the constant rate gives, but for rounding to milliseconds, are taken as meant so.
        """
        with video_errors():
            if self._stream is None:
                self._shape = frame.shape
                self._stream = self._add_stream(*frame.shape[:2])
                if self._audio is not None:
                    self._audio.add_to(self._container)
            if frame.shape != self._shape:
                raise VideoError(f"frames of several sizes: {self._shape} and {frame.shape}")
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            self._place = self._next_place(seconds)
            self._count += 1
            picture.pts, picture.time_base, picture.duration = self._place, self._tick, self._frame
            self._container.mux(self._stream.encode(picture))
            if self._audio is not None:
                self._audio.mux_until(self._place * self._tick)

    @property
    def _frame(self) -> int:
        """Ticks that a frame is shown at the constant rate."""
        return int(1 / self.rate / self._tick)

    def _next_place(self, seconds: float | None) -> int:
        """The tick of the next frame."""
        place = self._count * self._frame
        if seconds is not None and abs(seconds - place * self._tick) > ROUNDING:
            place = round(seconds / self._tick)
        return max(place, self._place + 1)

    def _add_stream(self, height: int, width: int) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": str(self._crf)})
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._tick
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream


@contextmanager
def _closed(container: OutputContainer) -> Iterator[OutputContainer]:
    """The container, closed at the end; one that failed has nothing more to say."""
    try:
        yield container
    except BaseException:
        with suppress(av.FFmpegError, OSError):
            container.close()
        raise
    container.close()
