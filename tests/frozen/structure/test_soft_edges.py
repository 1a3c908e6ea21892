"""Tests of the soft edges: strong at borders, in proportion to contrast, at every size."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.frozen.structure.soft_edges import SoftEdgesConfig, SoftEdgesEstimator
from tests.frozen.structure.test_edges import border, grown, scene

SETTINGS = {"blur": 3.0, "contrast": 60.0}


@pytest.fixture(scope="module")
def estimator() -> SoftEdgesEstimator:
    return SoftEdgesEstimator(SoftEdgesConfig())


@pytest.mark.parametrize("size", [64, 128, 256, 512])
@pytest.mark.parametrize("contrast", [5, 48, 150])
def test_a_straight_edge_has_the_strength_of_its_contrast_at_every_size(
    estimator: SoftEdgesEstimator, size: int, contrast: int
) -> None:
    edges = estimator(scene(size, contrast))
    middle = edges[0, size // 2]  # a row through the left and the right side of the square
    expected = math.tanh(contrast / 48)
    assert middle[: size // 2].max() == pytest.approx(expected, rel=1e-4)
    assert middle[size // 2 :].max() == pytest.approx(expected, rel=1e-4)
    near = grown(border(size), size // 25)  # five deviations of the blur
    assert (edges * (1 - near)).max() < 2e-3 and edges.min() >= 0 and edges.max() <= 1


def test_the_width_is_the_same_share_of_the_frame_at_every_size(estimator: SoftEdgesEstimator) -> None:
    shares = []
    for size in (128, 256, 512):  # in smaller frames, pixels are larger than the blur
        row = estimator(scene(size, 20))[0, size // 2, : size // 2]
        shares.append(float(row.sum() / row.max()) / size)
    assert max(shares) < 1.25 * min(shares) and max(shares) < 0.025


def test_the_strength_changes_gradually_with_the_contrast(estimator: SoftEdgesEstimator) -> None:
    """Canny edges, which come and go at a threshold, flicker where the contrast of a contour changes."""
    maps = torch.cat([estimator(scene(64, contrast)) for contrast in range(0, 80)])
    steps = maps.diff(dim=0).abs()
    assert maps[0].max() == 0 and steps.max() < 0.025


def test_the_frame_of_a_clip_does_not_change_the_others(estimator: SoftEdgesEstimator) -> None:
    frames = torch.cat([scene(64, 200), scene(64, 0), scene(64, 9)])
    raw = estimator(frames)
    for _ in range(20):  # wherever in memory they are
        assert torch.equal(raw, torch.cat([estimator(frame[None]) for frame in frames]))
    normal, limits = estimator.normalise(raw[2:])
    assert torch.equal(normal, raw[2:]) and limits == (0.0, 1.0)


def test_without_blur_the_frame_is_not_filtered() -> None:
    frame = scene(64)
    edges = SoftEdgesEstimator(SoftEdgesConfig(blur=0.0))(frame)
    assert (edges * (1 - grown(border(64), 1))).sum() == 0
    assert edges[0, 32].max() == pytest.approx(math.tanh(150 / 48), rel=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changes_the_edges_and_the_fingerprint(estimator: SoftEdgesEstimator, name: str) -> None:
    settings: dict[str, Any] = {name: SETTINGS[name]}
    other = SoftEdgesEstimator(SoftEdgesConfig(**settings))
    assert other.fingerprint != estimator.fingerprint == SoftEdgesEstimator(SoftEdgesConfig()).fingerprint
    difference: Tensor = (other(scene(128, 90)) - estimator(scene(128, 90))).abs()
    assert difference.max() > 0.01


def test_the_fingerprint_covers_the_version(estimator: SoftEdgesEstimator, monkeypatch: pytest.MonkeyPatch) -> None:
    before = estimator.fingerprint
    monkeypatch.setattr(SoftEdgesEstimator, "version", "soft edges 2")
    assert estimator.fingerprint != before


@pytest.mark.parametrize("wrong", [{"blur": -1.0}, {"contrast": 0.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^soft_edges\.blur=.*: give a blur of 0 or above, and a contrast above 0$"):
        SoftEdgesEstimator(SoftEdgesConfig(**wrong))
