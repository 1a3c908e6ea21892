"""Windows of frames out of video files: one interface, two decoders, and a fallback from the first to the second."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from gen1_train.video.decord_reader import DecordReader
from gen1_train.video.probe import REORDERING, VideoError, VideoInfo, open_container, probe, quarter_turns, video_stream

__all__ = ["DecordReader", "PyAVReader", "VideoError", "VideoInfo", "VideoReader", "probe", "read_clips"]


class VideoReader(Protocol):
    """A decoder. Frames are counted from 0 in the order of display and come upright (rotation tags applied)."""

    name: str

    def clips(self, path: str | Path, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Yields uint8 RGB (n, h, w, 3) for each window of n ascending frame indices; windows ascend by their start.

        At the first window that cannot be given whole and right it raises VideoError.
        """

    def count(self, path: str | Path) -> int:
        """The number of frames that the decoder finds. Raises VideoError."""


class PyAVReader:
    """Decodes in this process, once from the start to the last frame asked for."""

    name = "pyav"

    def clips(self, path: str | Path, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """See VideoReader."""
        waiting = deque(_Window(list(window)) for window in windows)
        active: deque[_Window] = deque()
        total = 0
        with open_container(path) as container:
            stream = video_stream(container)
            for index, frame in enumerate(_frames(container, stream)):
                total = index + 1
                while waiting and waiting[0].indices[0] <= index:
                    active.append(waiting.popleft())
                _collect(frame, index, active)
                while active and index >= active[0].indices[-1] + REORDERING:
                    yield active.popleft().stack()
                if not active and not waiting:
                    return
            expected = stream.frames or total
        if total < expected:
            raise VideoError(f"the file ends early: {total} of {expected} frames can be decoded")
        for window in (*active, *waiting):
            if len(window.frames) < len(window.indices):
                raise VideoError(f"frame {window.indices[-1]} was asked for, and there are {total}")
            yield window.stack()

    def count(self, path: str | Path) -> int:
        """See VideoReader: decodes everything."""
        with open_container(path) as container:
            return sum(1 for _ in _frames(container, video_stream(container)))


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """All frames in the order of display; the VideoError of a broken file says how far it went."""
    # one thread: more would make the frame at which a broken file fails a matter of luck
    stream.codec_context.thread_count = 1
    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except av.FFmpegError as error:
        reason = f"broken after {count} frames: {error.strerror}"
        raise VideoError(reason, transient=isinstance(error, OSError)) from error


@dataclass
class _Window:
    """A window on its way: which frames are wanted, and those that came so far."""

    indices: list[int]
    frames: list[np.ndarray] = field(default_factory=list)

    def stack(self) -> np.ndarray:
        if len({frame.shape for frame in self.frames}) != 1:
            raise VideoError("the size of the frames changes within the video")
        return np.stack(self.frames)


def _collect(frame: av.VideoFrame, index: int, windows: deque[_Window]) -> None:
    """Adds one decoded frame to the windows that want it; frames that none wants are never converted."""
    wanting = [w for w in windows if len(w.frames) < len(w.indices) and w.indices[len(w.frames)] == index]
    if wanting:
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns(frame))
        for window in wanting:
            window.frames.append(pixels)


@cache
def default_readers() -> tuple[VideoReader, ...]:
    """decord, then PyAV; one pair a process, so that decord's child is started once."""
    return DecordReader(), PyAVReader()


def read_clips(
    path: str | Path, windows: Sequence[Sequence[int]], readers: Sequence[VideoReader] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name of the reader that served, uint8 RGB (n, h, w, 3)) for each window, in order.

    Where a reader fails, the next one goes on from the same window. When the last one fails, its VideoError is raised;
    the windows that came before it are whole.
    """
    remaining = list(windows)
    failure = VideoError("no reader was given")
    for reader in default_readers() if readers is None else readers:
        try:
            for frames in reader.clips(path, list(remaining)):
                remaining.pop(0)
                yield reader.name, frames
            return
        except VideoError as error:
            failure = error
    raise failure
