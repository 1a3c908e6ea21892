"""Tests of t_s relative to the frame: the same as in pixels at a shorter side of 256, and the same share elsewhere."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.structure_levels import disks
from gen1_train.diffusion.structure import DEGRADATIONS, MAX_LEVEL, PIXELS, RELATIVE, degrade
from tests.diffusion.test_structure import depth_map

LEVELS = range(1, MAX_LEVEL + 1)
SIZES = [(64, 112), (96, 168), (128, 224), (256, 448), (384, 672), (512, 896)]
EDGES = [0.74, 1.27, 1.9, 2.7, 4.0, 5.5, 7.7]  # % of the width of 448x256, at t_s = 1..7
KEPT = [0.968, 0.913, 0.814, 0.643, 0.402, 0.153, 0.021]  # of the contrast of waves of a 14th of its width


@cache
def map_of_disks(height: int, width: int) -> Tensor:
    """The benchmark's disks: (1, 1, h, w)."""
    return disks(height, width)[None, None]


def resize(depth: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(depth, size=size, mode="bilinear", antialias=True, align_corners=False)


def edge_width(size: tuple[int, int], level: int, degradation: str = RELATIVE) -> float:
    """How much of the width a straight edge takes, from 10 to 90 % of it."""
    h, w = size
    step = (torch.arange(w) >= w // 2).float().expand(1, 1, h, w)
    row = degrade(step, [level], degradation)[0, 0, h // 2].double().numpy()
    low, high = np.interp([0.1, 0.9], row, np.arange(w))
    return float(high - low) / w


def contrast_kept(size: tuple[int, int], level: int, periods: float, degradation: str = RELATIVE) -> float:
    """How much remains of the contrast of vertical waves, in the half of the frame in its middle."""
    h, w = size
    waves = (2 * math.pi * periods * (torch.arange(w) + 0.5) / w).sin().expand(1, 1, h, w)
    middle = slice(w // 4, w - w // 4)
    return float(degrade(waves, [level], degradation)[0, 0, h // 2, middle].std() / waves[0, 0, 0, middle].std())


@pytest.mark.parametrize("size", [(256, 448), (448, 256), (256, 256), (256, 301)])
def test_at_a_shorter_side_of_256_both_are_the_same_to_the_bit(size: tuple[int, int]) -> None:
    depth = depth_map(1, 1, *size)
    for level in LEVELS:
        assert torch.equal(degrade(depth, [level], RELATIVE), degrade(depth, [level], PIXELS))


@pytest.mark.parametrize("size", SIZES)
def test_edges_and_contrasts_are_the_same_shares_of_every_frame(size: tuple[int, int]) -> None:
    pixel = 100 / size[1]
    for level, edge, kept in zip(LEVELS, EDGES, KEPT, strict=True):
        assert 100 * edge_width(size, level) == pytest.approx(edge, rel=0.05, abs=0.35 * pixel)
        assert contrast_kept(size, level, 14) == pytest.approx(kept, abs=0.006)


def test_in_pixels_they_are_not() -> None:
    widths = {size: edge_width(size, MAX_LEVEL, PIXELS) for size in SIZES}
    assert widths[64, 112] == pytest.approx(0.307, rel=0.02) and widths[512, 896] == pytest.approx(0.041, rel=0.02)


@pytest.mark.parametrize("size", [size for size in SIZES if size != SIZES[-1]])
def test_a_resized_map_is_degraded_to_the_resized_result(size: tuple[int, int]) -> None:
    """Up to 0.5 % of the range of the map, root mean square; what a level removes is 1 to 19 % of it."""
    large = map_of_disks(*SIZES[-1])
    small = resize(large, size)
    for level in LEVELS:
        expected = resize(degrade(large, [level], RELATIVE), size)
        difference, removed = (
            float((a - expected).square().mean().sqrt()) for a in (degrade(small, [level], RELATIVE), small)
        )
        assert difference < 0.006 and difference < removed / 3


@pytest.mark.parametrize("size", [(64, 112), (37, 53), (9, 5), (2, 3), (320, 384)])
def test_shape_range_constants_and_symmetry_are_kept(size: tuple[int, int]) -> None:
    depth, constant = depth_map(1, 1, *size), torch.full((1, 1, *size), 0.37)
    assert torch.equal(degrade(depth, [0], RELATIVE), depth)
    for level in LEVELS:
        degraded = degrade(depth, [level], RELATIVE)
        assert degraded.shape == depth.shape and degraded.min() >= 0 and degraded.max() <= 1 + 1e-6
        torch.testing.assert_close(degrade(constant, [level], RELATIVE), constant, rtol=1e-5, atol=1e-6)
        for side in (-1, -2):
            flipped = degrade(depth.flip(side), [level], RELATIVE).flip(side)
            torch.testing.assert_close(flipped, degraded, rtol=1e-4, atol=1e-5)


def test_a_window_is_degraded_as_a_frame_of_its_size() -> None:
    """The model sees a window of a larger frame, so t_s is relative to the window."""
    depth = map_of_disks(512, 896)
    window = (..., slice(100, 356), slice(200, 648))
    inner = (..., slice(60, -60), slice(60, -60))
    in_frame = degrade(depth, [5], RELATIVE, shorter_side=256)[window]
    torch.testing.assert_close(in_frame[inner], degrade(depth[window], [5], RELATIVE)[inner], rtol=0, atol=0.02)
    small = depth[..., :128, :224]  # the model sees no more than there is
    assert torch.equal(degrade(small, [5], RELATIVE, shorter_side=256), degrade(small, [5], RELATIVE))


def test_the_procedure_is_named_by_what_it_does() -> None:
    waves = torch.linspace(0, 20, 48 * 64, dtype=torch.float64).view(1, 1, 48, 64).sin()
    energies = [float(degrade(waves, [i], RELATIVE).square().sum()) for i in (1, 4, 7)]
    assert energies == pytest.approx([1492.0879789, 1312.6893597, 515.9754438], rel=1e-6)
    assert DEGRADATIONS[RELATIVE] == "2: as 1 does at a shorter side of 256, scaled with the frame"
    with pytest.raises(KeyError):
        degrade(waves, [1], "auto")
