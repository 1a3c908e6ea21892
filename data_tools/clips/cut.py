"""Cuts clips out of a stream of frames in one pass: windows that cross no cut, minus static and black ones.

With several lengths of clips, each has windows of its own, and all share the decoding, the shots and the crops of a
frame. Memory does not grow with the video. It holds, for each length, the crops of the windows that are not settled yet
(one or two) and one drop, and the last frames that the shot detector has not judged.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np

from data_tools.clips.shots import Lookahead, MarkedFrame, ShotDetector, check_size
from gen1_train.errors import UserError, check_not_negative, check_positive
from gen1_train.video.decoding.frames import Frame
from gen1_train.video.errors import VideoError
from gen1_train.video.selection import nearest_stride

Crop = Callable[[np.ndarray], np.ndarray]  # uint8 RGB (h, w, 3) of a frame -> the pixels to keep

PROGRESS = 250  # frames between two progress reports
BLACK_LUMA = 0.10 * 255  # as in ffmpeg's blackdetect: a pixel is black up to this luma,
BLACK_SHARE = 0.98  # and a frame is black from this share of black pixels

TOO_SHORT = "too short"
NO_ROOM = "no room between cuts"
STATIC = "static"
BLACK = "black"
INTERLACED = "interlaced"


@dataclass
class CutConfig:
    frames: int = 8  # number of frames in a clip
    more_frames: list[int] = field(default_factory=list)  # lengths of longer clips, which are cut as well: [16, 24]
    stride: int = 4  # frames of the video from one frame of the clip to the next
    fps: float | None = None  # about as many frames a second instead, by the stride that fits each video; null: stride
    clips_per_video: int | None = None  # at most this many, spread over the video; null: all that do not overlap
    shots: bool = True  # find the cuts between shots, which no clip may cross; false: treat the video as one shot
    shot_ratio: float = 3.0  # at a cut the picture changes this many times as much as around it (PySceneDetect's)
    shot_change: float = 15.0  # and by at least this: mean over hue, saturation and value, 0..255 (PySceneDetect's)
    trim: int = 3  # frames left out before and after a cut, where codecs and editors blend the two shots (ours)
    min_motion: float = 0.5  # mean change of luma (0..255) between frames of a clip; below it is static (ours)
    drop_interlaced: bool = False  # drop clips of interlaced footage; otherwise they are deinterlaced with bwdif (ours)
    drop_black: bool = True  # drop clips whose frames are all 98 % black pixels, as in ffmpeg's blackdetect (ours)

    def of_video(self, fps: float) -> "CutConfig":
        """Returns the settings for a video of `fps` frames a second: `self.fps` gives way to the nearest stride.

        A whole stride keeps the frames of a clip equally far apart (ours).
        """
        return self if self.fps is None else replace(self, stride=nearest_stride(fps, self.fps), fps=None)

    @property
    def lengths(self) -> list["CutConfig"]:
        """The settings of each length of clips, the shortest first."""
        return [replace(self, frames=frames, more_frames=[]) for frames in (self.frames, *self.more_frames)]

    @property
    def span(self) -> int:
        """Number of video frames from the first to the last frame of a clip, both included."""
        return (self.frames - 1) * self.stride + 1

    @property
    def step(self) -> int:
        """Number of video frames from the start of a clip to the start of the next one in the same shot."""
        return self.frames * self.stride

    def check(self) -> None:
        """Raises UserError for a setting that cannot be; the message names it and the remedy."""
        low, high = 1, 99  # the members of a sample are numbered with two digits
        if not low <= self.frames <= high:
            raise UserError(f"recipe.cut.frames={self.frames} is not in {low}..{high}")
        lengths = [self.frames, *self.more_frames]
        if lengths != sorted(set(lengths)) or lengths[-1] > high:
            raise UserError(
                f"recipe.cut.more_frames={self.more_frames}: give lengths above recipe.cut.frames={self.frames}, up to "
                f"{high}, each longer than the one before"
            )
        check_positive(
            recipe__cut__stride=self.stride,
            recipe__cut__fps=self.fps,
            recipe__cut__clips_per_video=self.clips_per_video,
            recipe__cut__shot_ratio=self.shot_ratio,
            recipe__cut__shot_change=self.shot_change,
        )
        check_not_negative(recipe__cut__trim=self.trim, recipe__cut__min_motion=self.min_motion)


@dataclass
class Clip:
    first: int  # index of its first frame in the video
    seconds: tuple[float, float]  # times of its first and its last frame
    motion: float  # mean change of luma between neighboring frames of the clip, 0..255
    frames: np.ndarray  # uint8 RGB (n, h, w, 3), cropped
    decoder: str  # that gave the last frame
    interlaced: bool = False  # in the file; its frames are deinterlaced
    still: np.ndarray | None = None  # what `still` returned for frame n // 2


@dataclass(frozen=True)
class Drop:
    """A stretch of the video that could have held clips but does not."""

    seconds: tuple[float, float]  # of its first and of its last frame
    category: str  # TOO_SHORT, NO_ROOM, STATIC, BLACK or INTERLACED
    reason: str  # one line
    count: int = 1  # number of neighboring shots or windows that were dropped for the same reason


@dataclass(frozen=True)
class Progress:
    """Reports that the video was read up to this time."""

    seconds: float


def cut_clips(
    frames: Iterable[Frame], config: CutConfig, expected_frames: int, crop: Crop, still: Crop | None = None
) -> Iterator[Clip | Drop | Progress]:
    """Yields clips and drops, those of a length in the order of the video, and a Progress after every PROGRESS frames.

    `frames` are all frames of the video in display order. `expected_frames` is their number according to the header (0:
    unknown; the first `clips_per_video` clips are then taken). `crop` makes (h', w', 3) of each frame of a clip, and
    `still` makes any array of its middle frame, of the shortest length. Each frame must stay readable until the second
    frame after it has come.

    Once `clips_per_video` clips of each length have been yielded, the rest of the video is not read. The drops of the
    longer lengths have categories of their own. A VideoError of `frames` passes through after the last drop; everything
    yielded before it is whole. Raises VideoError if the frame size changes.
    """
    lookahead = Lookahead(ShotDetector(config.shot_ratio, config.shot_change) if config.shots else None)
    lengths = [
        _Length(each, expected_frames, still=number == 0, category=f", clips of {each.frames} frames" if number else "")
        for number, each in enumerate(config.lengths)
    ]

    def take(marked: Iterable[MarkedFrame]) -> None:
        for each in marked:
            picture = _Picture(each, crop, still)
            for length in lengths:
                length.take(picture)

    newest = -1
    try:
        for newest, frame in enumerate(frames):
            take(lookahead.feed(frame))
            for length in lengths:
                yield from length.settled()
            if all(length.full for length in lengths):
                break
            if (newest + 1) % PROGRESS == 0:
                yield Progress(frame.seconds)
        else:
            take(lookahead.finish())
            for length in lengths:
                yield from length.finish(newest + 1)
    except VideoError:
        for length in lengths:
            yield from length.flush()
        raise
    for length in lengths:
        yield from length.flush()


class _Picture:
    """A judged frame, and what the windows of all lengths share of it."""

    def __init__(self, marked: MarkedFrame, crop: Crop, still: Crop | None) -> None:
        self.marked = marked
        self.crop = crop
        self._still = still

    @cached_property
    def rgb(self) -> np.ndarray:
        return self.marked.frame.rgb()

    @cached_property
    def pixels(self) -> np.ndarray:
        return self.crop(self.rgb)

    @cached_property
    def small(self) -> np.ndarray:
        return self.marked.frame.small() if self.marked.small is None else self.marked.small

    @property
    def still(self) -> np.ndarray | None:
        return None if self._still is None else self._still(self.rgb)


class _Window:
    """A clip whose frames are still coming. A window that is not wanted holds no pixels."""

    def __init__(self, first: int, seconds: float, wanted: bool) -> None:
        self.first = first
        self.start = seconds
        self.end = seconds
        self.wanted = wanted
        self.decoder = ""
        self.interlaced = False  # any frame was
        self.count = 0  # frames so far
        self.pixels: np.ndarray | None = None  # (n, h, w, 3), filled as the frames come
        self.still: np.ndarray | None = None
        self.luma: np.ndarray | None = None  # of the newest frame
        self.change = 0.0  # mean change of luma, summed over the pairs of neighboring frames
        self.black = True

    def add(self, picture: _Picture, frames: int, still: bool) -> None:
        """Adds the next of `frames` frames."""
        frame = picture.marked.frame
        self.end = frame.seconds
        self.decoder = frame.decoder
        self.interlaced = self.interlaced or frame.interlaced
        if not self.wanted:
            return
        self.measure(picture.small)
        if still and self.count == frames // 2:
            self.still = picture.still
        if self.pixels is None:
            self.pixels = np.empty((frames, *picture.pixels.shape), np.uint8)
        check_size(picture.pixels, self.pixels[0])
        self.pixels[self.count] = picture.pixels
        self.count += 1

    def measure(self, small: np.ndarray) -> None:
        luma = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        check_size(luma, self.luma)
        if self.luma is not None:
            self.change += float(cv2.absdiff(luma, self.luma).mean())
        self.luma = luma
        self.black = self.black and bool((luma <= BLACK_LUMA).mean() >= BLACK_SHARE)

    def result(self, config: CutConfig) -> Clip | Drop | None:
        """Returns the finished clip or the reason to drop it; None if the window was not wanted."""
        if self.pixels is None:
            return None
        seconds = (self.start, self.end)
        if self.interlaced and config.drop_interlaced:
            return Drop(seconds, INTERLACED, "its frames are interlaced: recipe.cut.drop_interlaced=false deinterlaces")
        if self.black and config.drop_black:
            return Drop(seconds, BLACK, f"at least {BLACK_SHARE:.0%} of the pixels of every frame are black")
        motion = self.change / max(config.frames - 1, 1)
        if motion < config.min_motion and config.frames > 1:
            return Drop(seconds, STATIC, f"luma changes by less than {config.min_motion:g} of 255 from frame to frame")
        return Clip(self.first, seconds, motion, self.pixels, self.decoder, self.interlaced, self.still)


@dataclass
class _Pending:
    """A clip or drop that is not settled: a later cut may still undo it."""

    last: int  # index of its last frame
    item: Clip | Drop | None  # None: a window that was not wanted


class _Cutter:
    """Turns judged frames into clips and drops, and yields them once they are settled."""

    def __init__(self, config: CutConfig, expected_frames: int, still: bool) -> None:
        self.config = config
        self.still = still
        # the frames that the windows of the video would fill if it were one shot
        self.expected = max((expected_frames - config.span) // config.step + 1, 0) * config.step
        self.pending: deque[_Pending] = deque()
        self.window: _Window | None = None  # there is at most one, since windows do not overlap
        self.taken = 0  # clips that were yielded or are pending
        self.index = -1  # of the newest frame
        self.seconds = 0.0  # of the newest frame
        self.begin_shot(0, 0, 0.0)
        self.begin_shot(0, 0, 0.0)

    def begin_shot(self, first: int, trim: int, seconds: float) -> None:
        self.shot = first
        self.shot_seconds = seconds
        self.usable = first + trim  # the first frame that a window of this shot may use
        self.next = self.usable  # the first frame of the next window

    def take(self, picture: _Picture) -> None:
        marked = picture.marked
        if marked.begins_shot:
            self.end_shot(self.config.trim)
            self.begin_shot(marked.index, self.config.trim, marked.frame.seconds)
        self.index = marked.index
        self.seconds = marked.frame.seconds
        if self.index == self.next:
            self.window = _Window(self.index, self.seconds, self.wanted(self.index))
            self.next += self.config.step
        if self.window is not None and (self.index - self.window.first) % self.config.stride == 0:
            self.window.add(picture, self.config.frames, self.still)
            if self.index == self.window.first + self.config.span - 1:
                self.close(self.window)

    def wanted(self, first: int) -> bool:
        """Whether the cap admits a window there: the clips so far must not be ahead of an even spread."""
        cap = self.config.clips_per_video
        return cap is None or (self.taken < cap and self.taken * self.expected <= cap * first)

    def close(self, window: _Window) -> None:
        item = window.result(self.config)
        self.taken += isinstance(item, Clip)
        self.pending.append(_Pending(self.index, item))
        self.window = None

    def end_shot(self, trim: int) -> None:
        """Ends the shot with the newest frame; its last `trim` frames must not be used."""
        self.window = None
        while self.pending and self.pending[-1].last >= max(self.shot, self.index + 1 - trim):
            self.taken -= isinstance(self.pending.pop().item, Clip)
        if self.index + 1 - trim - self.usable < self.config.span:
            seconds = (self.shot_seconds, self.seconds)
            reason = f"a clip needs {self.config.span} frames of a shot, {self.config.trim} or more from its cuts"
            self.pending.append(_Pending(self.index, Drop(seconds, NO_ROOM, reason)))

    def settled(self) -> Iterator[Clip | Drop | None]:
        """Yields everything that no later frame can undo."""
        while self.pending:
            last = self.pending[0].last
            if self.index < last + self.config.trim:
                return
            yield self.pending.popleft().item

    def finish(self) -> Iterator[Clip | Drop | None]:
        """Yields everything that is left, once the video has ended without an error."""
        self.end_shot(0)
        while self.pending:
            yield self.pending.popleft().item

    def too_short(self, frames: int) -> Drop:
        return Drop((0.0, self.seconds), TOO_SHORT, f"it has {frames} frames, a clip needs {self.config.span}")


class _Merger:
    """Merges neighboring drops of the same category into one, and stops after the last clip that is wanted."""

    def __init__(self, cap: int | None) -> None:
        self.cap = cap
        self.drop: Drop | None = None
        self.clips = 0  # number of clips yielded

    @property
    def full(self) -> bool:
        return self.clips == self.cap

    def add(self, item: Clip | Drop | None) -> Iterator[Clip | Drop]:
        if self.full:
            return
        held = self.drop
        if isinstance(item, Drop) and held is not None and item.category == held.category:
            self.drop = replace(held, seconds=(held.seconds[0], item.seconds[1]), count=held.count + item.count)
            return
        yield from self.flush()
        if isinstance(item, Drop):
            self.drop = item
        elif item is not None:
            self.clips += 1
            yield item

    def flush(self) -> Iterator[Drop]:
        held, self.drop = self.drop, None
        if held is not None:
            yield held


class _Length:
    """The clips and drops of one length."""

    def __init__(self, config: CutConfig, expected_frames: int, still: bool, category: str) -> None:
        """`still`: whether its clips give stills. `category`: what is added to the category of its drops."""
        self._span = config.span
        self._cutter = _Cutter(config, expected_frames, still)
        self._merger = _Merger(config.clips_per_video)
        self._category = category

    @property
    def full(self) -> bool:
        """Whether no further clip is wanted."""
        return self._merger.full

    def take(self, picture: _Picture) -> None:
        if not self.full:
            self._cutter.take(picture)

    def settled(self) -> Iterator[Clip | Drop]:
        """Yields what no later frame can undo."""
        for item in self._cutter.settled():
            yield from map(self._named, self._merger.add(item))

    def finish(self, frames: int) -> Iterator[Clip | Drop]:
        """Yields what is left of a video of that many frames, which has ended without an error."""
        if frames < self._span:
            self._merger.drop = self._cutter.too_short(frames)
            return
        for item in self._cutter.finish():
            yield from map(self._named, self._merger.add(item))

    def flush(self) -> Iterator[Clip | Drop]:
        """Yields the last drop."""
        yield from map(self._named, self._merger.flush())

    def _named(self, item: Clip | Drop) -> Clip | Drop:
        return replace(item, category=item.category + self._category) if isinstance(item, Drop) else item
