"""Finds the cuts between the shots of a video while its frames stream by."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scenedetect.common import FrameTimecode
from scenedetect.detectors.adaptive_detector import AdaptiveDetector

from gen1_train.video.decoding.frames import Frame
from gen1_train.video.errors import VideoError

LAG = 2  # frames: the detector compares the change at a frame with that at the LAG frames before and after it
RATE = 25.0  # frames per second; PySceneDetect requires one, and nothing here depends on it


class ShotDetector:
    """PySceneDetect's AdaptiveDetector, frame by frame, which finds cuts at both ends of the video too.

    A frame begins a shot if it differs from the one before by `change` or more (mean over hue, saturation and value,
    0..255) and by `ratio` times or more what the frames around it differ by: fast motion is not a cut, and neither are
    three cuts within five frames (a flash).
    """

    def __init__(self, ratio: float = 3.0, change: float = 15.0) -> None:
        # min_scene_len=0: shots may have any length
        self._detector = AdaptiveDetector(ratio, min_scene_len=0, window_width=LAG, min_content_val=change)
        self._last: np.ndarray | None = None  # the newest frame
        self._fed = 0  # frames that the detector was given, including the LAG repeated ones at the start

    @property
    def settled(self) -> int:
        """The last frame up to which all cuts are known, itself included; -1: none yet."""
        return max(self._fed - 2 * LAG - 1, -1)

    def feed(self, small: np.ndarray) -> list[int]:
        """Takes the next frame, uint8 BGR (h, w, 3), and returns the cuts now known: first frames of new shots.

        The frame is kept until the next one. Raises VideoError if its size differs from that of the one before.
        """
        # The detector judges no frame that has fewer than LAG neighbors, so the first and last frames are repeated.
        repeats = LAG if self._last is None else 0
        check_size(small, self._last)
        self._last = small
        return self._feed(small, repeats + 1)

    def finish(self) -> list[int]:
        """Returns the cuts among the last frames; no frame may follow."""
        return [] if self._last is None else self._feed(self._last, LAG)

    def _feed(self, small: np.ndarray, times: int) -> list[int]:
        cuts = []
        for _ in range(times):
            cuts += self._detector.process_frame(FrameTimecode(self._fed, RATE), small)
            self._fed += 1
        return [cut.frame_num - LAG for cut in cuts]


@dataclass
class MarkedFrame:
    """A frame with the detector's verdict on whether it begins a shot."""

    index: int
    frame: Frame
    small: np.ndarray | None  # uint8 BGR (h, w, 3), if it was already made
    begins_shot: bool = False  # after a cut; the first frame of the video does not count


class Lookahead:
    """Holds the newest frames back until the detector has judged them; without a detector it holds nothing back."""

    def __init__(self, detector: ShotDetector | None) -> None:
        self._detector = detector
        self._count = 0
        self._held: deque[MarkedFrame] = deque()

    def feed(self, frame: Frame) -> Iterator[MarkedFrame]:
        """Takes the next frame and yields those that are now judged, in order. Raises VideoError for another size."""
        index = self._count
        self._count += 1
        if self._detector is None:
            yield MarkedFrame(index, frame, None)
            return
        small = frame.small()
        self._held.append(MarkedFrame(index, frame, small))
        yield from self._release(self._detector.feed(small), self._detector.settled)

    def finish(self) -> Iterator[MarkedFrame]:
        """Yields the last frames; none may follow."""
        if self._detector is not None:
            yield from self._release(self._detector.finish(), self._detector.settled)

    def _release(self, cuts: list[int], settled: int) -> Iterator[MarkedFrame]:
        while self._held and self._held[0].index <= settled:
            marked = self._held.popleft()
            marked.begins_shot = marked.index in cuts
            yield marked


def check_size(image: np.ndarray, before: np.ndarray | None) -> None:
    """Raises VideoError if two images that must have the same size do not."""
    if before is not None and image.shape != before.shape:
        raise VideoError("the size of the frames changes within the video")
