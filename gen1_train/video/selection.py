"""Selects frames of a video."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError

MAX_FPS = 240.0  # frames per second; ours
# A container that stores milliseconds (Matroska) shifts a frame by up to 1 ms, because the first one is rounded too.
ROUNDING = 1.1e-3  # seconds


@dataclass(frozen=True)
class Selection:
    """A selection of frames by number or, with `fps`, by time. Raises UserError for invalid values."""

    start: int = 0  # the first frame
    frames: int | None = None  # the number of frames; None: to the end
    stride: int = 1  # frames of the video from one selected frame to the next
    fps: float | None = None  # instead of a stride: the frame on display every 1/fps s, by the timestamps

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("frames", 1), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: it must be {least} or more")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise UserError(f"fps={self.fps}: it must be above 0 and at most {MAX_FPS:g}")
        if self.fps is not None and self.stride > 1:
            raise UserError(f"fps={self.fps} and stride={self.stride} exclude each other: give one of them")


def nearest_stride(fps: float, wanted: float) -> int:
    """Returns the stride by which a video of `fps` frames a second comes nearest to `wanted` ones; at least 1."""
    return max(1, round(fps / wanted))


class Timed(Protocol):
    """The attributes of a frame that a selection uses."""

    index: int  # from 0, in display order
    seconds: float  # since the video's first frame


TimedFrame = TypeVar("TimedFrame", bound=Timed)


def pick(frames: Iterable[TimedFrame], selection: Selection, rate: float) -> Iterator[tuple[TimedFrame, float]]:
    """Yields (frame, seconds since the first selected frame) from all frames of a video, in order.

    In a selection by number, the seconds are those of the timestamps; by time, they are k/fps. `rate`: mean frames per
    second; the last frame is displayed as long as the one before it, but no longer than the mean (ours: few files store
    it). No more frames are consumed than needed. Raises VideoError if the video ends before the start.
    """
    selected = _by_number(frames, selection) if selection.fps is None else _by_time(frames, selection, rate)
    return itertools.islice(selected, selection.frames)


def _by_number(frames: Iterable[TimedFrame], selection: Selection) -> Iterator[tuple[TimedFrame, float]]:
    first: float | None = None
    for frame in _started(frames, selection.start):
        first = frame.seconds if first is None else first
        if (frame.index - selection.start) % selection.stride == 0:
            yield frame, frame.seconds - first


def _by_time(frames: Iterable[TimedFrame], selection: Selection, rate: float) -> Iterator[tuple[TimedFrame, float]]:
    assert selection.fps is not None
    moments = (number / selection.fps for number in itertools.count())
    moment = next(moments)
    shown = None  # the frame on display
    first = 0.0
    last_step = 1 / rate
    for frame in _started(frames, selection.start):
        if shown is None:
            first = frame.seconds
        else:
            while moment < frame.seconds - first - ROUNDING:
                yield shown, moment
                moment = next(moments)
            last_step = min(frame.seconds - shown.seconds, 1 / rate)
        shown = frame
    while shown is not None and moment < shown.seconds - first + last_step - ROUNDING:
        yield shown, moment
        moment = next(moments)


def _started(frames: Iterable[TimedFrame], start: int) -> Iterator[TimedFrame]:
    """The frames from number `start` on. Raises VideoError if there is none."""
    total = 0
    for frame in frames:
        total = frame.index + 1
        if frame.index >= start:
            yield frame
    if total <= start:
        raise VideoError(f"start={start} is beyond the end: the video has {total} frame{'s' * (total != 1)}")
