"""Writes frames to a video file that browsers play."""

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

from gen1_train.system.files import atomic_file
from gen1_train.video.audio import AudioSource, AudioTrack, open_audio
from gen1_train.video.decoding.container import video_errors
from gen1_train.video.errors import VideoError
from gen1_train.video.selection import ROUNDING

BT709 = 1  # ffmpeg's number for matrix, primaries and transfer of HDTV; players guess them in untagged files
# x264 computes the same on all CPUs; its code for AVX-512 may even write different files on one (seen at 64x48)
REPRODUCIBLE = "cpu-independent=1"
CLOCK = 90_000  # the minimum number of ticks per second for the timestamps of frames


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 18) -> None:
    """Writes uint8 RGB frames (h, w, 3) to a complete file or to none; see `VideoWriter`. Raises VideoError."""
    with VideoWriter(path, fps, crf) as writer:
        for frame in frames:
            writer.write(frame)


class VideoWriter:
    """A context manager that writes an H.264 MP4 (yuv420p, index at the front) frame by frame.

    At the end of the block, the file is complete. If the block raises, or the file cannot be finished, nothing is
    written, and a file that existed before is unchanged. An odd width or height is made even by repeating the last
    column or row; with `keep_odd` it stays, in yuv444p, which some players lack. Raises VideoError: on entry if the
    folder is not writable, and later if there are no frames, the frames differ in size, or the disk is full. Errors of
    the block itself pass unchanged.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float | Fraction,
        crf: int = 18,
        audio_from: AudioSource | None = None,
        keep_odd: bool = False,
    ) -> None:
        """`fps`: frames per second; `crf`: x264's quality, lower is better; `audio_from`: the audio to include."""
        self.path = Path(path)
        # 1001: the denominator of 29.97 and similar rates
        self.rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        # every frame of a constant rate falls on a tick
        self._time_base = Fraction(1, self.rate.numerator * math.ceil(CLOCK / self.rate.numerator))  # seconds per tick
        self._crf = crf
        self._audio_from = audio_from
        self._keep_odd = keep_odd
        self._count = 0  # frames written
        self._last_tick = -1  # of the last frame
        self._shape = (0, 0, 0)  # of the frames
        self._stream: VideoStream | None = None
        self._audio: AudioTrack | None = None
        self._no_audio: VideoError | None = None

    def __enter__(self) -> "VideoWriter":
        with video_errors(), ExitStack() as stack:
            if self._audio_from is not None:
                try:
                    self._audio = open_audio(self._audio_from)
                except VideoError as error:
                    self._no_audio = error
                if self._audio is not None:
                    stack.callback(self._audio.close)
            temporary = stack.enter_context(atomic_file(self.path))
            temporary.touch()  # ffmpeg would fail only at the first frame, possibly hours later
            # the first timestamps of encoders and audio may be negative: an edit list hides what is before 0
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
                self._audio.mux_until((self._last_tick + self._frame_ticks) * self._time_base)
                self._audio.finish()

    @property
    def audio_error(self) -> VideoError | None:
        """Why audio is missing from some time on: it never costs the video."""
        return self._audio.error if self._audio is not None else self._no_audio

    def write(self, frame: np.ndarray, seconds: float | None = None) -> None:
        """Adds a uint8 RGB frame (h, w, 3), displayed `seconds` after the first one; None: at the constant rate.

        Seconds ascend. Those that differ from the constant rate only by rounding to milliseconds are snapped to it.
        """
        with video_errors():
            if self._stream is None:
                self._shape = frame.shape
                self._stream = self._add_stream(*frame.shape[:2])
                if self._audio is not None:
                    self._audio.add_to(self._container)
            if frame.shape != self._shape:
                raise VideoError(f"the frames differ in size: {self._shape} and {frame.shape}")
            height, width = self._stream.height, self._stream.width
            sized = np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(sized), format="rgb24")
            picture = picture.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
            self._last_tick = self._next_tick(seconds)
            self._count += 1
            picture.pts = self._last_tick
            picture.time_base = self._time_base
            picture.duration = self._frame_ticks
            self._container.mux(self._stream.encode(picture))
            if self._audio is not None:
                self._audio.mux_until(self._last_tick * self._time_base)

    @property
    def _frame_ticks(self) -> int:
        """Ticks from one frame to the next at the constant rate."""
        return int(1 / self.rate / self._time_base)

    def _next_tick(self, seconds: float | None) -> int:
        """The tick of the next frame."""
        tick = self._count * self._frame_ticks
        if seconds is not None and abs(seconds - tick * self._time_base) > ROUNDING:
            tick = round(seconds / self._time_base)
        return max(tick, self._last_tick + 1)

    def _add_stream(self, height: int, width: int) -> VideoStream:
        options = {"crf": str(self._crf), "x264-params": REPRODUCIBLE}
        stream = self._container.add_stream("libx264", rate=self.rate, options=options)
        full = self._keep_odd and bool(height % 2 or width % 2)  # chroma of every pixel, not of 2 x 2 of them
        stream.height = height if full else height + height % 2
        stream.width = width if full else width + width % 2
        stream.pix_fmt = "yuv444p" if full else "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._time_base
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        return stream


@contextmanager
def _closed(container: OutputContainer) -> Iterator[OutputContainer]:
    """The container, closed at the end; after an error, errors of closing it are suppressed."""
    try:
        yield container
    except BaseException:
        with suppress(av.FFmpegError, OSError):
            container.close()
        raise
    container.close()
