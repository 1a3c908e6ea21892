"""Where a video cuts from one shot to the next, found while its frames stream by."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scenedetect.common import FrameTimecode
from scenedetect.detectors.adaptive_detector import AdaptiveDetector

from gen1_train.video.frames import Frame
from gen1_train.video.probe import VideoError

LAG = 2  # frames: the detector compares the change at a frame with that at the LAG frames before and after it
RATE = 25.0  # frames a second; PySceneDetect wants one, and nothing here depends on it


class ShotDetector:
    """PySceneDetect's AdaptiveDetector, frame by frame, and at both ends of the video too.

    A frame begins a shot if it differs from the one before by `change` or more (mean over hue, saturation and value,
    0..255) and by `ratio` times or more what the frames around it differ by: fast motion is no cut, and three cuts
    within five frames (a flash) are none either.
    """

    def __init__(self, ratio: float = 3.0, change: float = 15.0) -> None:
        # 0: a shot may be as short as it likes
        self._detector = AdaptiveDetector(ratio, min_scene_len=0, window_width=LAG, min_content_val=change)
        self._last: np.ndarray | None = None  # the newest frame
        self._fed = 0  # frames that the detector was given, the LAG repeated ones at the start counted

    @property
    def settled(self) -> int:
        """Up to this frame, itself included, all cuts are known; -1: none yet."""
        return max(self._fed - 2 * LAG - 1, -1)

    def feed(self, small: np.ndarray) -> list[int]:
        """The next frame, uint8 BGR (h, w, 3) -> the cuts that are now known: the first frames of new shots.

        The frame is kept until the next one. Raises VideoError if it has another size than the one before.
        """
        # The detector judges no frame that has fewer than LAG neighbours, so the end frames stand there repeatedly.
        repeats = LAG if self._last is None else 0
        check_size(small, self._last)
        self._last = small
        return self._feed(small, repeats + 1)

    def finish(self) -> list[int]:
        """The cuts among the last frames; no frame may follow."""
        return [] if self._last is None else self._feed(self._last, LAG)

    def _feed(self, small: np.ndarray, times: int) -> list[int]:
        cuts = []
        for _ in range(times):
            cuts += self._detector.process_frame(FrameTimecode(self._fed, RATE), small)
            self._fed += 1
        return [cut.frame_num - LAG for cut in cuts]


@dataclass
class MarkedFrame:
    """A frame of which it is known whether it begins a shot."""

    index: int
    frame: Frame
    small: np.ndarray | None  # uint8 BGR (h, w, 3), if it was made already
    begins_shot: bool = False  # after a cut; the first frame of the video does not count


class Lookahead:
    """Holds the newest frames back until the detector has judged them; without a detector there is nothing to judge."""

    def __init__(self, detector: ShotDetector | None) -> None:
        self._detector = detector
        self._count = 0
        self._held: deque[MarkedFrame] = deque()

    def feed(self, frame: Frame) -> Iterator[MarkedFrame]:
        """The next frame -> those that are now judged, in order. Raises VideoError for a frame of another size."""
        index, self._count = self._count, self._count + 1
        if self._detector is None:
            yield MarkedFrame(index, frame, None)
            return
        small = frame.small()
        self._held.append(MarkedFrame(index, frame, small))
        yield from self._release(self._detector.feed(small), self._detector.settled)

    def finish(self) -> Iterator[MarkedFrame]:
        """The last frames; none may follow."""
        if self._detector is not None:
            yield from self._release(self._detector.finish(), self._detector.settled)

    def _release(self, cuts: list[int], settled: int) -> Iterator[MarkedFrame]:
        while self._held and self._held[0].index <= settled:
            marked = self._held.popleft()
            marked.begins_shot = marked.index in cuts
            yield marked


def check_size(image: np.ndarray, before: np.ndarray | None) -> None:
    """Raises VideoError if two images that must be alike in size are not."""
    if before is not None and image.shape != before.shape:
        raise VideoError("the size of the frames changes within the video")
