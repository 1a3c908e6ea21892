"""Edges: where a drawn thing has them, at every size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.estimators.edges import EdgesConfig, EdgesEstimator

SETTINGS = {"blur": 2.0, "low": 30.0, "high": 70.0}


def scene(size: int, contrast: int = 150) -> Tensor:
    """A square on a plain ground, half as high as the frame: uint8 (1, size, 2 size, 3)."""
    frame = torch.full((1, size, 2 * size, 3), 50, dtype=torch.uint8)
    frame[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 50 + contrast
    return frame


def near(mask: Tensor, pixels: int) -> Tensor:
    """The mask, grown by so many pixels."""
    return F.max_pool2d(mask[:, None], 2 * pixels + 1, stride=1, padding=pixels)[:, 0]


def border(size: int) -> Tensor:
    inside = (scene(size)[..., 0] > 100).float()
    return near(inside, 1) - inside


@pytest.fixture(scope="module")
def estimator() -> EdgesEstimator:
    return EdgesEstimator(EdgesConfig())


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_edges_lie_along_the_border_and_nowhere_else_at_every_size(estimator, size):
    edges = estimator(scene(size))
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    within = max(1, size // 128)  # pixels; the blur rounds the corners
    assert (edges * (1 - near(border(size), within))).sum() == 0
    assert (border(size) * near(edges, within + 1)).sum() == border(size).sum()


@pytest.mark.parametrize(("contrast", "found"), [(10, False), (31, False), (39, True), (200, True)])
def test_a_step_of_brightness_is_an_edge_or_none_at_every_size(estimator, contrast, found):
    """`high` is 35. By fixed gradients, the blur of a large frame would flatten what is an edge in a small one."""
    sizes = (64, 128, 256, 512, 1024)
    assert [bool(estimator(scene(size, contrast)).any()) for size in sizes] == [found] * len(sizes)


def test_a_plain_frame_has_none(estimator):
    assert estimator(torch.full((2, 32, 48, 3), 77, dtype=torch.uint8)).sum() == 0


def test_each_frame_is_treated_alone(estimator):
    frames = torch.cat([scene(64, 200), scene(64, 0), scene(64, 90)])
    assert torch.equal(estimator(frames), torch.cat([estimator(frame[None]) for frame in frames]))


def test_no_range_of_a_clip_is_stretched(estimator):
    for raw in (torch.zeros(2, 3, 4), torch.ones(2, 3, 4)):
        normal, limits = estimator.normalise(raw)
        assert torch.equal(normal, raw) and limits == (0.0, 1.0)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fingerprint_is_of_every_setting(estimator, name):
    other = EdgesEstimator(EdgesConfig(**{name: SETTINGS[name]}))
    assert other.fingerprint != estimator.fingerprint == EdgesEstimator(EdgesConfig()).fingerprint


def test_the_fingerprint_is_of_the_version(estimator, monkeypatch):
    before = estimator.fingerprint
    monkeypatch.setattr("gen1_train.estimators.edges.VERSION", "edges 2")
    assert estimator.fingerprint != before


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changes_the_edges(name):
    torch.manual_seed(0)
    coarse = torch.randint(0, 256, (1, 3, 32, 48)).float()
    frame = F.interpolate(coarse, size=(128, 192), mode="bilinear").byte().movedim(1, -1)
    before = EdgesEstimator(EdgesConfig())(frame)
    after = EdgesEstimator(EdgesConfig(**{name: SETTINGS[name]}))(frame)
    assert before.mean() > 0.01 and not torch.equal(before, after)


@pytest.mark.parametrize("wrong", [{"blur": -1.0}, {"low": -1.0}, {"low": 200.0, "high": 100.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match="give a blur of 0 or above and 0 <= low <= high"):
        EdgesEstimator(EdgesConfig(**wrong))


def test_without_blur_the_frame_is_taken_as_it_is():
    frame = scene(64)
    edges = EdgesEstimator(EdgesConfig(blur=0.0))(frame)
    assert (edges * (1 - near(border(64), 1))).sum() == 0 and edges.sum() > 100
