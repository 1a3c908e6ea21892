"""The benchmark of CLIP's fits measures what it says: the solid is where the offset puts it."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frozen.clip_fit import OFFSETS, ask_seen, rendered, scene_at


@pytest.mark.parametrize("offset", [-0.75, 0.0, 0.5])
def test_a_solid_is_at_its_offset(offset: float) -> None:
    frames = rendered([scene_at(seed, offset, 112 / 64) for seed in range(8)], 112, 64)
    for frame in frames:
        columns = np.flatnonzero((frame.solids > 0).any(0))
        center = (columns.min() + columns.max() + 1) / 2
        assert abs((center - 56) / 56 - offset) < 0.06


def test_a_crop_loses_the_side_and_nothing_else_does() -> None:
    rows = list(ask_seen(argparse.Namespace(frames=4), Path()))
    seen = {(row["offset"], row["fit"]): row["solid_seen"] for row in rows}
    assert seen[0.0, "crop"] == 1 and seen[0.75, "crop"] < 0.3
    assert {seen[offset, fit] for offset in OFFSETS for fit in ("pad", "squash")} == {1.0}
