"""Tests of the windows over long videos: every frame is in a window, and its blending weights sum to one."""

from itertools import pairwise

import pytest
import torch

from gen1_train.diffusion.windows import consecutive, overlapping, window_starts, window_weights, windows_over

LENGTHS = (1, 2, 7, 8, 9, 12, 13, 40)
SIZES = [(n, window, overlap) for n in LENGTHS for window in (4, 8) for overlap in (0, 1, 3)]
BY_DEFAULT = [(n, window, None) for n in LENGTHS for window in (1, 2, 3, 4, 5, 8)]


@pytest.mark.parametrize(("frames", "window", "overlap"), [*SIZES, *BY_DEFAULT])
def test_every_frame_is_in_a_full_window_and_its_weights_sum_to_one(
    frames: int, window: int, overlap: int | None
) -> None:
    starts = window_starts(frames, window, overlap)
    weights = window_weights(starts, window, frames)
    assert weights.shape == (len(starts), min(window, frames)) and (weights > 0).all()
    total = torch.zeros(frames)
    for start, part in zip(starts, weights):
        assert 0 <= start <= max(0, frames - window)
        total[start : start + window] += part
    torch.testing.assert_close(total, torch.ones(frames))
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= window - (window // 2 if overlap is None else overlap) for gap in gaps)


def test_a_short_video_is_a_single_window() -> None:
    assert window_starts(5, 8, 4) == [0] and window_weights([0], 8, 5).tolist() == [[1.0] * 5]
    assert window_starts(4, 4, 4) == [0]  # a clip no longer than the overlap
    assert window_starts(8, 8, 4) == [0] and window_starts(9, 8, 4) == [0, 1] and window_starts(12, 8, 4) == [0, 4]


def test_windows_overlap_by_half_unless_it_is_given() -> None:
    assert window_starts(20, 8) == window_starts(20, 8, 4) and window_starts(9, 4) == [0, 2, 4, 5]
    assert window_starts(3, 1) == [0, 1, 2]


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
