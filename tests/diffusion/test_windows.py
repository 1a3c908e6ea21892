"""Windows over long videos: every frame is in one, and blending weighs them to one."""

from itertools import pairwise

import pytest
import torch

from gen1_train.diffusion.windows import window_starts, window_weights

SIZES = [(n, window, overlap) for n in (1, 2, 7, 8, 9, 12, 13, 40) for window in (4, 8) for overlap in (0, 1, 3)]


@pytest.mark.parametrize(("frames", "window", "overlap"), SIZES)
def test_every_frame_is_in_a_full_window_and_its_weights_sum_to_one(frames: int, window: int, overlap: int) -> None:
    starts = window_starts(frames, window, overlap)
    weights = window_weights(starts, window, frames)
    assert weights.shape == (len(starts), min(window, frames)) and (weights > 0).all()
    total = torch.zeros(frames)
    for start, part in zip(starts, weights):
        assert 0 <= start <= max(0, frames - window)
        total[start : start + window] += part
    torch.testing.assert_close(total, torch.ones(frames))
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= window - overlap for gap in gaps)


def test_a_short_video_is_one_window_as_it_is() -> None:
    assert window_starts(5, 8, 4) == [0] and window_weights([0], 8, 5).tolist() == [[1.0] * 5]
    assert window_starts(4, 4, 4) == [0]  # a clip that is no longer than the overlap
    assert window_starts(8, 8, 4) == [0] and window_starts(9, 8, 4) == [0, 1] and window_starts(12, 8, 4) == [0, 4]
