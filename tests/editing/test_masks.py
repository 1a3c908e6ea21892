"""Foreground and background by depth, with one threshold for the whole video."""

import numpy as np
import pytest
import torch

from gen1_train.editing.clip_structure import ClipStructure
from gen1_train.editing.masks import BY_DEPTH, mask_by_depth, otsu
from gen1_train.editing.spool import Spool
from gen1_train.errors import UserError
from gen1_train.frozen.structure.depth import DepthEstimator, normalise_clip
from gen1_train.frozen.structure.edges import EdgesConfig, EdgesEstimator
from gen1_train.frozen.structure.kinds import StructureEstimator


def structure_of(raw: np.ndarray, estimator: StructureEstimator | None = None) -> ClipStructure:
    """The structure of a video with these depths."""
    estimator = estimator or DepthEstimator.__new__(DepthEstimator)
    spool = Spool()
    for frame in raw:
        spool.append(frame)
    return ClipStructure(spool, normalise_clip(torch.from_numpy(raw))[1], estimator)


def near_object(frames: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Depths with a near object that moves, and where it is."""
    rng = np.random.default_rng(0)
    where = np.zeros((frames, 16, 24), bool)
    for i in range(frames):
        where[i, 4:10, i // 2 : i // 2 + 8] = True
    return (np.where(where, 5.0, 1.0) + rng.normal(0, 0.2, where.shape)).astype(np.float32), where


@pytest.mark.parametrize("kind", BY_DEPTH)
def test_the_mask_covers_the_near_object(kind: str) -> None:
    raw, where = near_object()
    with structure_of(raw) as structure:
        masks = np.stack(list(mask_by_depth(structure, kind)))
    assert masks.dtype == np.float32 and np.array_equal(masks == 1, where if kind == "foreground" else ~where)


def test_a_flat_scene_has_no_foreground() -> None:
    with structure_of(np.ones((3, 4, 5), np.float32)) as structure, pytest.raises(UserError, match="no foreground"):
        list(mask_by_depth(structure, "foreground"))


def test_a_mask_by_depth_needs_depth_and_not_edges() -> None:
    edges = EdgesEstimator(EdgesConfig())
    with structure_of(near_object()[0], edges) as structure, pytest.raises(UserError, match="mask=background needs"):
        list(mask_by_depth(structure, "background"))


def test_otsu_splits_two_modes_between_them() -> None:
    histogram = np.zeros(256)
    histogram[[20, 21, 22]], histogram[[200, 201]] = 100, 30
    assert 22 / 256 < otsu(histogram) < 200 / 256
