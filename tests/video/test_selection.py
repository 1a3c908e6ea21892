"""Which frames are chosen: by number, and by time from any timestamps."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gen1_train.errors import UserError
from gen1_train.video.probe import VideoError
from gen1_train.video.selection import Selection, pick


@dataclass
class Drawn:
    index: int
    seconds: float


def video(times: list[float]) -> Iterator[Drawn]:
    return (Drawn(index, seconds) for index, seconds in enumerate(times))


def chosen(times: list[float], selection: Selection, rate: float = 10) -> list[tuple[int, float]]:
    return [(frame.index, seconds) for frame, seconds in pick(video(times), selection, rate)]


EVEN = [index / 10 for index in range(10)]


def test_everything_is_chosen_unless_told_otherwise() -> None:
    assert chosen(EVEN, Selection()) == list(enumerate(EVEN))


def test_by_number_the_seconds_count_from_the_first_one_chosen() -> None:
    times = [0, 1, 1.5, 4, 9]
    assert chosen(times, Selection(start=1)) == [(1, 0), (2, 0.5), (3, 3), (4, 8)]
    assert chosen(times, Selection(start=1, stride=2)) == [(1, 0), (3, 3)]
    assert chosen(times, Selection(stride=2, frames=2)) == [(0, 0), (2, 1.5)]
    assert [index for index, _ in chosen(EVEN, Selection(start=3, stride=4))] == list(range(10))[3::4]


@pytest.mark.parametrize(("fps", "indices"), [(10, range(10)), (5, [0, 2, 4, 6, 8]), (20, [i // 2 for i in range(20)])])
def test_by_time_an_even_video_is_thinned_or_repeated(fps: float, indices: list[int]) -> None:
    assert chosen(EVEN, Selection(fps=fps)) == [(index, number / fps) for number, index in enumerate(indices)]


def test_by_time_it_is_the_frame_shown_then() -> None:
    times = [0, 0.05, 0.9, 1.0, 1.01, 1.02, 3.0]
    assert [index for index, _ in chosen(times, Selection(fps=1))] == [0, 3, 5, 6]
    assert [index for index, _ in chosen(times, Selection(fps=2))] == [0, 1, 3, 5, 5, 5, 6]
    assert [index for index, _ in chosen(times, Selection(start=1, fps=1), rate=1)] == [1, 5, 5, 6]


def test_timestamps_in_milliseconds_repeat_no_frame_of_an_even_video() -> None:
    exact = [number * 1001 / 30000 for number in range(300)]
    rounded = [round(seconds, 3) for seconds in exact]
    numbers = [index for index, _ in chosen(rounded, Selection(fps=30000 / 1001), rate=30000 / 1001)]
    assert numbers == list(range(300))


@pytest.mark.parametrize("selection", [Selection(frames=3), Selection(frames=3, fps=10), Selection(frames=2, stride=2)])
def test_no_more_is_decoded_than_needed(selection: Selection) -> None:
    frames = video(EVEN)
    assert len(list(pick(frames, selection, 10))) == selection.frames
    assert next(frames).index <= 4


def test_a_video_of_one_frame() -> None:
    assert chosen([0], Selection()) == [(0, 0)]
    assert chosen([0], Selection(fps=4), rate=4) == [(0, 0)]


@pytest.mark.parametrize("selection", [Selection(start=10), Selection(start=999, fps=2)])
def test_a_start_beyond_the_end_tells_how_long_the_video_is(selection: Selection) -> None:
    with pytest.raises(VideoError, match=f"start={selection.start} is beyond its end: it has 10 frames"):
        chosen(EVEN, selection)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": -1}, "start=-1: it must be 0 or more"),
        ({"frames": 0}, "frames=0: it must be 1 or more"),
        ({"stride": 0}, "stride=0: it must be 1 or more"),
        ({"fps": 0}, "fps=0: it must be above 0 and at most 240"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"fps": 8, "stride": 2}, "fps=8 and stride=2 do not go together"),
    ],
)
def test_what_cannot_be_meant(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Selection(**values)
