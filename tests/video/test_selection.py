"""Selecting frames by number, and by time from any timestamps."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from gen1_train.video.selection import Selection, pick


@dataclass
class FakeFrame:
    index: int
    seconds: float


def video(times: list[float]) -> Iterator[FakeFrame]:
    return (FakeFrame(index, seconds) for index, seconds in enumerate(times))


def selected(times: list[float], selection: Selection, rate: float = 10) -> list[tuple[int, float]]:
    return [(frame.index, seconds) for frame, seconds in pick(video(times), selection, rate)]


EVEN = [index / 10 for index in range(10)]


def test_all_frames_are_selected_by_default() -> None:
    assert selected(EVEN, Selection()) == list(enumerate(EVEN))


def test_by_number_the_seconds_count_from_the_first_selected_frame() -> None:
    times = [0, 1, 1.5, 4, 9]
    assert selected(times, Selection(start=1)) == [(1, 0), (2, 0.5), (3, 3), (4, 8)]
    assert selected(times, Selection(start=1, stride=2)) == [(1, 0), (3, 3)]
    assert selected(times, Selection(stride=2, frames=2)) == [(0, 0), (2, 1.5)]
    assert [index for index, _ in selected(EVEN, Selection(start=3, stride=4))] == list(range(10))[3::4]


@pytest.mark.parametrize(("fps", "indices"), [(10, range(10)), (5, [0, 2, 4, 6, 8]), (20, [i // 2 for i in range(20)])])
def test_by_time_frames_of_an_even_video_are_skipped_or_repeated(fps: float, indices: list[int]) -> None:
    assert selected(EVEN, Selection(fps=fps)) == [(index, number / fps) for number, index in enumerate(indices)]


def test_by_time_the_frame_on_display_is_selected() -> None:
    times = [0, 0.05, 0.9, 1.0, 1.01, 1.02, 3.0]
    assert [index for index, _ in selected(times, Selection(fps=1))] == [0, 3, 5, 6]
    assert [index for index, _ in selected(times, Selection(fps=2))] == [0, 1, 3, 5, 5, 5, 6]
    assert [index for index, _ in selected(times, Selection(start=1, fps=1), rate=1)] == [1, 5, 5, 6]


def test_timestamps_in_milliseconds_repeat_no_frame_of_an_even_video() -> None:
    exact = [number * 1001 / 30000 for number in range(300)]
    rounded = [round(seconds, 3) for seconds in exact]
    numbers = [index for index, _ in selected(rounded, Selection(fps=30000 / 1001), rate=30000 / 1001)]
    assert numbers == list(range(300))


@pytest.mark.parametrize("selection", [Selection(frames=3), Selection(frames=3, fps=10), Selection(frames=2, stride=2)])
def test_no_more_frames_are_decoded_than_needed(selection: Selection) -> None:
    frames = video(EVEN)
    assert len(list(pick(frames, selection, 10))) == selection.frames
    assert next(frames).index <= 4


def test_a_video_of_one_frame_has_one_selected_frame() -> None:
    assert selected([0], Selection()) == [(0, 0)]
    assert selected([0], Selection(fps=4), rate=4) == [(0, 0)]


@pytest.mark.parametrize("selection", [Selection(start=10), Selection(start=999, fps=2)])
def test_a_start_beyond_the_end_is_an_error_with_the_length_of_the_video(selection: Selection) -> None:
    with pytest.raises(VideoError, match=f"start={selection.start} is beyond the end: the video has 10 frames"):
        selected(EVEN, selection)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": -1}, "start=-1: it must be 0 or more"),
        ({"frames": 0}, "frames=0: it must be 1 or more"),
        ({"stride": 0}, "stride=0: it must be 1 or more"),
        ({"fps": 0}, "fps=0: it must be above 0 and at most 240"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"fps": 8, "stride": 2}, "fps=8 and stride=2 exclude each other"),
    ],
)
def test_invalid_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Selection(**values)
