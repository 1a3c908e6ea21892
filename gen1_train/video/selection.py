"""Which frames of a video are meant."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gen1_train.errors import UserError
from gen1_train.video.probe import VideoError

MAX_FPS = 240.0  # frames a second; ours
# Containers that keep time in milliseconds (Matroska) move a frame by up to 1, since the first one is rounded too.
ROUNDING = 1.1e-3  # seconds


@dataclass(frozen=True)
class Selection:
    """Some frames of a video, by number, or by time with `fps`. Raises UserError for what cannot be meant."""

    start: int = 0  # the first frame
    frames: int | None = None  # how many; None: to the end
    stride: int = 1  # frames of the video from one to the next
    fps: float | None = None  # instead of a stride: the frame that is shown at every 1/fps s, by the timestamps

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("frames", 1), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: it must be {least} or more")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise UserError(f"fps={self.fps}: it must be above 0 and at most {MAX_FPS:g}")
        if self.fps is not None and self.stride > 1:
            raise UserError(f"fps={self.fps} and stride={self.stride} do not go together: give one of them")


class Timed(Protocol):
    """A frame, as far as it is looked at here."""

    index: int  # from 0, in the order of display
    seconds: float  # since the video's first frame


Shown = TypeVar("Shown", bound=Timed)


def pick(frames: Iterable[Shown], selection: Selection, rate: float) -> Iterator[tuple[Shown, float]]:
    """Yields (frame, seconds since the first one chosen) from all frames of a video, in order.

    By number the seconds are those of the timestamps, by time they are k/fps. `rate`: mean frames a second; the last
    frame is shown as long as the one before it, but not longer than the mean (ours: few files tell). No frame beyond
    those needed is drawn. Raises VideoError if the video ends before the start.
    """
    chosen = _by_number(frames, selection) if selection.fps is None else _by_time(frames, selection, rate)
    return itertools.islice(chosen, selection.frames)


def _by_number(frames: Iterable[Shown], selection: Selection) -> Iterator[tuple[Shown, float]]:
    first: float | None = None
    for frame in _started(frames, selection.start):
        first = frame.seconds if first is None else first
        if (frame.index - selection.start) % selection.stride == 0:
            yield frame, frame.seconds - first


def _by_time(frames: Iterable[Shown], selection: Selection, rate: float) -> Iterator[tuple[Shown, float]]:
    assert selection.fps is not None
    moments = (number / selection.fps for number in itertools.count())
    moment, shown, first, last_step = next(moments), None, 0.0, 1 / rate
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


def _started(frames: Iterable[Shown], start: int) -> Iterator[Shown]:
    """The frames from `start` on. Raises VideoError if there is none."""
    total = 0
    for frame in frames:
        total = frame.index + 1
        if frame.index >= start:
            yield frame
    if total <= start:
        raise VideoError(f"start={start} is beyond its end: it has {total} frame{'s' * (total != 1)}")
