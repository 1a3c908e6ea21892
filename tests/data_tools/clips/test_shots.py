"""Cuts are found at every frame, as PySceneDetect finds them, and as early as possible."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from scenedetect.common import FrameTimecode
from scenedetect.detectors.adaptive_detector import AdaptiveDetector

from data_tools.clips.shots import LAG, ShotDetector
from gen1_train.video.errors import VideoError
from tests.video.files import MEDIA, needs_media


def picture(shot: int, number: int) -> np.ndarray:
    """Returns uint8 BGR (24, 32, 3) of a shot: its own gray, and a bright square that moves 2 pixels per frame."""
    frame = np.full((24, 32, 3), (30, 110, 190)[shot % 3], np.uint8)
    frame[8:16, number * 2 % 24 : number * 2 % 24 + 8] += 50
    return frame


def video(cuts: list[int], frames: int) -> list[np.ndarray]:
    return [picture(sum(cut <= i for cut in cuts), i) for i in range(frames)]


def detect(frames: list[np.ndarray]) -> list[int]:
    """Returns all cuts; checks that `settled` is right after every frame."""
    detector = ShotDetector()
    assert detector.settled == -1
    cuts: list[int] = []
    for index, frame in enumerate(frames):
        before = detector.settled
        new = detector.feed(frame)
        assert all(before < cut <= detector.settled for cut in new)
        assert detector.settled == max(index - LAG, -1)
        cuts += new
    settled = detector.settled
    new = detector.finish()
    assert all(settled < cut < len(frames) for cut in new)
    assert detector.settled == len(frames) - 1
    return cuts + new


@pytest.mark.parametrize("frames", [2, 3, 4, 5, 6, 20])
def test_a_cut_is_found_at_every_frame_including_the_first_and_last(frames: int) -> None:
    for cut in range(1, frames):
        assert detect(video([cut], frames)) == [cut]


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 30])
def test_a_video_without_cuts_has_none(frames: int) -> None:
    assert detect(video([], frames)) == []


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5, 14])
def test_two_cuts_may_be_close_to_each_other(apart: int) -> None:
    for first in range(1, 20 - apart):
        assert detect(video([first, first + apart], 20)) == [first, first + apart]


def test_a_fast_pan_is_not_a_cut() -> None:
    scene = np.random.default_rng(0).integers(0, 255, (3, 40, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [scene[:, 4 * i : 4 * i + 32] for i in range(60)]
    change = np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairwise(frames)])
    assert change > 15  # more than the threshold for a cut
    assert detect(frames) == []


def test_the_given_thresholds_are_used() -> None:
    frames = [
        np.full((8, 8, 3), 100 + 60 * (i >= 10), np.uint8) for i in range(20)
    ]  # 20 in each of hue, saturation, value
    for change, expected in ((19.0, [10]), (21.0, [])):
        detector = ShotDetector(change=change)
        assert [cut for frame in frames for cut in detector.feed(frame)] == expected


def test_another_frame_size_is_an_error() -> None:
    detector = ShotDetector()
    detector.feed(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(VideoError, match="size of the frames changes"):
        detector.feed(np.zeros((8, 9, 3), np.uint8))


def small_frames(name: str, side: int) -> Iterator[np.ndarray]:
    with av.open(str(MEDIA / name)) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="bgr24")
            scale = min(1.0, side / max(pixels.shape))
            yield cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


@pytest.mark.slow
@needs_media
@pytest.mark.parametrize("side", [256, 128])
@pytest.mark.parametrize(
    "name, cuts",
    [
        (
            "bikes.mp4",
            [30, 76, 137, 187, 242],
        ),  # looked at: all five are cuts, the last two shots are of another bicycle
        ("bigbuckbunny.mp4", []),
        ("carphone_pristine.mp4", []),
    ],
)
def test_the_cuts_of_real_videos(name: str, cuts: list[int], side: int) -> None:
    assert detect(list(small_frames(name, side))) == cuts


@needs_media
def test_cuts_within_a_video_are_those_of_pyscenedetect() -> None:
    frames = list(small_frames("bikes.mp4", 128))
    theirs = AdaptiveDetector(min_scene_len=1)
    expected = [
        cut.frame_num for i, frame in enumerate(frames) for cut in theirs.process_frame(FrameTimecode(i, 25.0), frame)
    ]
    assert detect(frames) == expected


def test_the_import_prints_nothing_and_loads_no_heavy_library() -> None:
    heavy = ("torch", "scipy", "pandas", "matplotlib")
    code = f"import sys, data_tools.clips.cut; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
