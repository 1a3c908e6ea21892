"""Tests of the windows over long videos: every frame is in a window, and its blending weights sum to one."""

from itertools import pairwise

import pytest
import torch

from gen1_train.diffusion.windows import consecutive, overlapping, window_places, window_weights, windows_over

LENGTHS = (1, 2, 7, 8, 9, 12, 13, 40)
SIZES = [(n, window, overlap) for n in LENGTHS for window in (4, 8) for overlap in (0, 1, 3)]
BY_DEFAULT = [(n, window, None) for n in LENGTHS for window in (1, 2, 3, 4, 5, 8)]


@pytest.mark.parametrize(("frames", "window", "overlap"), [*SIZES, *BY_DEFAULT])
def test_every_frame_is_in_a_full_window_and_its_weights_sum_to_one(
    frames: int, window: int, overlap: int | None
) -> None:
    places = window_places(frames, window, overlap)
    weights = window_weights(places, frames)
    total = torch.zeros(frames)
    for place, part in zip(places, weights, strict=True):
        assert part.shape == (min(window, frames),) and (part > 0).all()
        total[place] += part
    torch.testing.assert_close(total, torch.ones(frames))
    gaps = [b - a for a, b in pairwise(starts_of(places))]
    assert all(0 < gap <= window - (window // 2 if overlap is None else overlap) for gap in gaps)
    assert places[0].start == 0 and places[-1].stop == frames


def starts_of(places: list[slice]) -> list[int]:
    return [place.start for place in places]


def test_a_short_video_is_a_single_window() -> None:
    assert window_places(5, 8, 4) == [slice(0, 5)] and window_weights([slice(0, 5)], 5)[0].tolist() == [1.0] * 5
    assert window_places(4, 4, 4) == [slice(0, 4)]  # a clip no longer than the overlap
    assert window_places(8, 8, 4) == [slice(0, 8)]
    assert starts_of(window_places(9, 8, 4)) == [0, 1] and starts_of(window_places(12, 8, 4)) == [0, 4]
    assert window_places(12, 16, None, [8]) == [slice(0, 12)]  # also between two lengths of clips


def test_windows_overlap_by_half_unless_it_is_given() -> None:
    assert window_places(20, 8) == window_places(20, 8, 4) and starts_of(window_places(9, 4)) == [0, 2, 4, 5]
    assert starts_of(window_places(3, 1)) == [0, 1, 2]


@pytest.mark.parametrize(("frames", "window", "overlap"), [*SIZES, *BY_DEFAULT])
def test_windows_of_one_length_are_those_of_before(frames: int, window: int, overlap: int | None) -> None:
    """To the bit: the code of older versions, which knew one length."""
    starts = [0]
    if frames > window:
        starts = list(range(0, frames - window + 1, window - (window // 2 if overlap is None else overlap)))
        if starts[-1] + window < frames:
            starts.append(frames - window)
    size = min(window, frames)
    position = torch.arange(size, dtype=torch.float64)
    tent = torch.minimum(position + 1, size - position)
    total = torch.zeros(frames, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += tent
    weights = [(tent / total[start : start + size]).float() for start in starts]
    places, found = zip(*overlapping(frames, window, overlap))
    assert places == tuple(slice(start, start + size) for start in starts)
    assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))


@pytest.mark.parametrize(
    ("frames", "overlap", "last"),
    [
        (16, None, slice(0, 16)),
        (17, None, slice(9, 17)),
        (20, None, slice(12, 20)),
        (21, None, slice(5, 21)),  # 8 frames would share 3 of them with the window before, less than half
        (24, None, slice(8, 24)),  # windows of the longest length, without a rest
        (33, None, slice(25, 33)),
        (21, 3, slice(13, 21)),  # 3 are enough if the user says so
        (21, 8, slice(5, 21)),  # and 8 frames cannot share 8
    ],
)
def test_the_last_window_has_the_least_length_that_overlaps_enough(
    frames: int, overlap: int | None, last: slice
) -> None:
    windows = overlapping(frames, 16, overlap, [8])
    assert windows[-1][0] == last
    assert all(place.stop - place.start == 16 for place, _ in windows[:-1])
    total = torch.zeros(frames)
    for place, weights in windows:
        total[place] += weights
    torch.testing.assert_close(total, torch.ones(frames))


@pytest.mark.parametrize("time", [overlapping(9, 4, None), consecutive(9, 4)])
def test_windows_over_time_and_space_cover_each_place_with_weights_that_sum_to_one(time: list) -> None:
    windows = list(windows_over(time, overlapping(5, 4, 1), overlapping(6, 8, 4)))
    total = torch.zeros(9, 1, 5, 6)
    for window in windows:
        frames, rows, columns = window.part
        assert window.weights.shape[2:] == (4, 6)
        total[frames, :, rows, columns] += window.weights
    torch.testing.assert_close(total, torch.ones_like(total))
    assert len(windows) == 2 * len(time)
