"""Tests of the edges: at the borders of drawn shapes, at every size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.frozen.structure.edges import EdgesConfig, EdgesEstimator

SETTINGS = {"blur": 2.0, "low": 30.0, "high": 70.0}


def scene(size: int, contrast: int = 150) -> Tensor:
    """Draws a square, half as high as the frame, on a plain background: uint8 (1, size, 2 size, 3)."""
    frame = torch.full((1, size, 2 * size, 3), 50, dtype=torch.uint8)
    frame[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 50 + contrast
    return frame


def grown(mask: Tensor, pixels: int) -> Tensor:
    """Returns the mask grown by this many pixels."""
    return F.max_pool2d(mask[:, None], 2 * pixels + 1, stride=1, padding=pixels)[:, 0]


def border(size: int) -> Tensor:
    inside = (scene(size)[..., 0] > 100).float()
    return grown(inside, 1) - inside


@pytest.fixture(scope="module")
def estimator() -> EdgesEstimator:
    return EdgesEstimator(EdgesConfig())


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_edges_are_only_at_the_border_at_every_size(estimator, size):
    edges = estimator(scene(size))
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    tolerance = max(1, size // 128)  # pixels; the blur rounds the corners
    assert (edges * (1 - grown(border(size), tolerance))).sum() == 0
    assert (border(size) * grown(edges, tolerance + 1)).sum() == border(size).sum()


@pytest.mark.parametrize(("contrast", "is_edge"), [(10, False), (31, False), (39, True), (200, True)])
def test_the_threshold_of_an_edge_is_the_same_at_every_size(estimator, contrast, is_edge):
    """`high` is 35. With fixed gradient thresholds, the blur of a large frame would hide edges of a small one."""
    sizes = (64, 128, 256, 512, 1024)
    assert [bool(estimator(scene(size, contrast)).any()) for size in sizes] == [is_edge] * len(sizes)


def test_a_plain_frame_has_no_edges(estimator):
    assert estimator(torch.full((2, 32, 48, 3), 77, dtype=torch.uint8)).sum() == 0


def test_each_frame_is_processed_alone(estimator):
    frames = torch.cat([scene(64, 200), scene(64, 0), scene(64, 90)])
    assert torch.equal(estimator(frames), torch.cat([estimator(frame[None]) for frame in frames]))


def test_the_range_of_a_clip_is_not_stretched(estimator):
    for raw in (torch.zeros(2, 3, 4), torch.ones(2, 3, 4)):
        normal, limits = estimator.normalise(raw)
        assert torch.equal(normal, raw) and limits == (0.0, 1.0)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fingerprint_covers_every_setting(estimator, name):
    other = EdgesEstimator(EdgesConfig(**{name: SETTINGS[name]}))
    assert other.fingerprint != estimator.fingerprint == EdgesEstimator(EdgesConfig()).fingerprint


def test_the_fingerprint_covers_the_version(estimator, monkeypatch):
    before = estimator.fingerprint
    monkeypatch.setattr(EdgesEstimator, "version", "edges 2")
    assert estimator.fingerprint != before


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changes_the_edges(name):
    torch.manual_seed(0)
    coarse = torch.randint(0, 256, (1, 3, 32, 48)).float()
    frame = F.interpolate(coarse, size=(128, 192), mode="bilinear").byte().movedim(1, -1)
    default = EdgesEstimator(EdgesConfig())(frame)
    changed = EdgesEstimator(EdgesConfig(**{name: SETTINGS[name]}))(frame)
    assert default.mean() > 0.01 and not torch.equal(default, changed)


@pytest.mark.parametrize("wrong", [{"blur": -1.0}, {"low": -1.0}, {"low": 200.0, "high": 100.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="give a blur of 0 or above and 0 <= low <= high"):
        EdgesEstimator(EdgesConfig(**wrong))


def test_without_blur_the_frame_is_not_filtered():
    frame = scene(64)
    edges = EdgesEstimator(EdgesConfig(blur=0.0))(frame)
    assert (edges * (1 - grown(border(64), 1))).sum() == 0 and edges.sum() > 100
