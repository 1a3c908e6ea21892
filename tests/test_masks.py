"""Foreground and background by depth: where the depth parts in two, over the whole video."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gen1_train.editor import ClipStructure
from gen1_train.errors import UserError
from gen1_train.estimators.depth import DepthEstimator, normalise_clip
from gen1_train.estimators.edges import EdgesConfig, EdgesEstimator
from gen1_train.masks import BY_DEPTH, mask_by_depth, otsu
from gen1_train.spool import Spool


def structure_of(raw: np.ndarray) -> tuple[Any, ClipStructure]:
    """An editor, as far as masks know one, and the structure of a video of these depths."""
    estimator = DepthEstimator.__new__(DepthEstimator)
    spool = Spool()
    for frame in raw:
        spool.append(frame)
    return SimpleNamespace(structure_estimator=estimator), ClipStructure(
        spool, normalise_clip(torch.from_numpy(raw))[1], estimator
    )


def near_thing(frames: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Depths with a near thing that moves, and where it is."""
    rng = np.random.default_rng(0)
    where = np.zeros((frames, 16, 24), bool)
    for i in range(frames):
        where[i, 4:10, i // 2 : i // 2 + 8] = True
    return (np.where(where, 5.0, 1.0) + rng.normal(0, 0.2, where.shape)).astype(np.float32), where


@pytest.mark.parametrize("kind", BY_DEPTH)
def test_the_mask_is_where_the_near_thing_is(kind: str) -> None:
    raw, where = near_thing()
    editor, structure = structure_of(raw)
    with Spool() as mask, structure:
        mask_by_depth(editor, structure, kind, mask)
        found = mask[:]
    assert found.dtype == np.float32 and np.array_equal(found == 1, where if kind == "foreground" else ~where)


def test_a_flat_scene_has_no_foreground() -> None:
    editor, structure = structure_of(np.ones((3, 4, 5), np.float32))
    with Spool() as mask, structure, pytest.raises(UserError, match="there is no foreground"):
        mask_by_depth(editor, structure, "foreground", mask)


def test_edges_tell_no_depth() -> None:
    editor: Any = SimpleNamespace(structure_estimator=EdgesEstimator(EdgesConfig()))
    _, structure = structure_of(near_thing()[0])
    with Spool() as mask, structure, pytest.raises(UserError, match="mask=background needs depth"):
        mask_by_depth(editor, structure, "background", mask)


def test_otsu_parts_two_heaps_in_their_middle() -> None:
    histogram = np.zeros(256)
    histogram[[20, 21, 22]], histogram[[200, 201]] = 100, 30
    assert 22 / 256 < otsu(histogram) < 200 / 256
