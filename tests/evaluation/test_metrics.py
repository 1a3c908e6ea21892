"""Identities of the metrics: a still video, the input as output, changes that must not count, a known motion."""

import numpy as np
import pytest
import torch

from gen1_train.evaluation.metrics import (
    flows,
    frame_consistency,
    prompt_consistency,
    structure_fidelity,
    warp_error,
)
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from tests.evaluation.fake import moving
from tests.made_checkpoint import WEIGHTS


def test_a_still_video_is_exactly_consistent() -> None:
    """With a real CLIP and real optical flow: exactly 1 and 0."""
    still = moving(1).repeat(4, axis=0)
    embeddings = ClipEncoder(ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None)).images(still)
    assert frame_consistency(embeddings) == 1.0
    assert warp_error(still, still) == 0.0


def test_consistency_is_the_mean_cosine() -> None:
    frames = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])  # at right angles, then parallel
    assert frame_consistency(frames) == 0.5
    assert prompt_consistency(frames, torch.tensor([5.0, 0.0])) == pytest.approx(1 / 3, abs=1e-6)
    assert prompt_consistency(-frames, torch.tensor([5.0, 0.0])) == pytest.approx(-1 / 3, abs=1e-6)


def test_one_frame_has_no_consistency_over_time() -> None:
    assert frame_consistency(torch.ones(1, 4)) is None and warp_error(moving(1), moving(1)) is None


def test_the_input_keeps_all_of_its_structure() -> None:
    """With a real estimator."""
    frames = torch.from_numpy(moving())
    depth = DepthEstimator(DepthConfig(str(WEIGHTS / "depth"), 64, 16))(frames)
    assert structure_fidelity(depth, depth) == (1.0, 0.0)


def test_structure_is_compared_up_to_scale_and_shift() -> None:
    output, reference = (torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    output = output + reference
    plain = structure_fidelity(output, reference)
    assert plain[0] is not None and 0.5 < plain[0] < 0.9 and plain[1] is not None and plain[1] > 0.03
    for scale, shift in ((7.0, 0.0), (0.01, 5.0), (1000.0, -400.0)):
        assert structure_fidelity(output * scale + shift, reference) == pytest.approx(plain, abs=2e-5)
        assert structure_fidelity(output, reference * scale + shift) == pytest.approx(plain, abs=2e-5)


def test_inverted_structure_is_not_aligned() -> None:
    reference = torch.arange(24.0).reshape(2, 3, 4)
    correlation, error = structure_fidelity(-reference, reference)
    assert correlation == -1.0 and error == pytest.approx(6 / 23, abs=1e-6)  # the mean distance from the mean


def test_flat_structure_has_no_fidelity() -> None:
    some, flat = torch.arange(24.0).reshape(2, 3, 4), torch.full((2, 3, 4), 0.3)
    assert structure_fidelity(some, flat) == (None, None)
    correlation, error = structure_fidelity(flat, some)
    assert correlation is None and error == pytest.approx(6 / 23, abs=1e-6)


@pytest.mark.parametrize("step", [(0, 0), (2, 1), (3, 0), (0, 2)])
def test_flow_is_the_motion(step: tuple[int, int]) -> None:
    """Flow points back in time. `moving` shifts the crop, so its content moves the other way."""
    for flow, reliable in flows(moving(3, step=step)):
        assert np.abs(flow[12:-12, 12:-12] - step).mean() < 0.1 and reliable[12:-12, 12:-12].mean() > 0.95


def test_flow_of_pixels_that_enter_the_frame_is_unreliable() -> None:
    (_, reliable), *_ = flows(moving(2, step=(6, 0)))
    assert not reliable[:, -3:].any() and reliable[:, :90].mean() > 0.95


def test_the_warp_error_measures_flicker_and_not_motion() -> None:
    frames = moving(6)
    smooth = warp_error(frames, frames)
    brighter = frames.astype(int) + 40 * (np.arange(6) % 2)[:, None, None, None]
    flickering = warp_error(np.clip(brighter, 0, 255).astype(np.uint8), frames)
    assert smooth is not None and flickering is not None
    assert smooth < 0.01 and 0.11 < flickering < 40 / 255 + 0.01


def test_an_output_that_moves_with_the_input_does_not_flicker() -> None:
    """Whatever it shows. An output that stays still while the input moves does flicker."""
    other = moving(5, seed=1)
    moved, still = warp_error(other, moving(5)), warp_error(other[:1].repeat(5, axis=0), moving(5))
    assert moved is not None and still is not None and moved < 0.02 < 0.05 < still
