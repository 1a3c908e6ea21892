"""Tests of the structure levels t_s: the detail that each round removes, and the channels that encode the level."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gen1_train.diffusion.structure import DEGRADATIONS, LEVEL_CHANNELS, MAX_LEVEL, PIXELS, degrade, level_channels


def depth_map(b: int = 1, n: int = 2, h: int = 64, w: int = 112) -> Tensor:
    """Edges and noise in [0, 1]."""
    torch.manual_seed(0)
    depth = 0.5 * torch.rand(b, n, h, w)
    depth[..., h // 4 : h // 2, w // 4 : w // 2] += 0.5
    return depth


def level(*levels: int) -> list[int]:
    return list(levels)


def detail(depth: Tensor) -> float:
    """Energy of the differences between neighbouring pixels."""
    return float(depth.diff(dim=-1).square().sum() + depth.diff(dim=-2).square().sum())


def test_level_0_returns_an_exact_copy() -> None:
    depth = depth_map()
    degraded = degrade(depth, level(0))
    assert torch.equal(degraded, depth)
    degraded.zero_()
    assert depth.any()


def test_every_round_removes_more_detail() -> None:
    depth = depth_map()
    energies = [detail(degrade(depth, level(i))) for i in range(MAX_LEVEL + 1)]
    assert all(later < 0.95 * earlier for earlier, later in pairwise(energies))
    assert energies[-1] < 0.01 * energies[0]


def test_the_degradation_is_named_by_what_it_does() -> None:
    """Stored latents are read only if they were degraded in the same way: a change has to change the name, too."""
    waves = torch.linspace(0, 20, 48 * 64, dtype=torch.float64).view(1, 1, 48, 64).sin()
    energies = [float(degrade(waves, level(i)).square().sum()) for i in (1, 4, 7)]
    assert energies == pytest.approx([1131.7841, 91.3575, 16.7336], rel=1e-5)
    assert DEGRADATIONS[PIXELS] == "1: blur (1.0, 4.0, 6.0, 4.0, 1.0), downsampling by 1.41421 in each round"


def test_fine_detail_is_removed_before_coarse_detail() -> None:
    """Stripes with a period of 4 pixels vanish early; a half-and-half image remains to the end."""
    w = 112
    stripes = (torch.arange(w) // 2 % 2).float().expand(1, 1, 64, w)
    halves = (torch.arange(w) >= w // 2).float().expand(1, 1, 64, w)
    assert degrade(stripes, level(3)).std() < 0.1 * stripes.std()
    assert degrade(halves, level(7)).std() > 0.7 * halves.std()


def test_every_round_works_at_a_lower_resolution() -> None:
    """A line widens by about sqrt(2) per round; seven blurs at one size would widen it to 4 pixels, not 14."""
    line = torch.zeros(1, 1, 8, 255)
    line[..., 127] = 1
    offset = torch.arange(255.0) - 127
    widths = []
    for i in range(1, MAX_LEVEL + 1):
        row = degrade(line, level(i))[0, 0, 4]
        widths.append(float((row @ offset**2 / row.sum()).sqrt()))
    assert all(1.3 < later / earlier < 1.7 for earlier, later in pairwise(widths))
    assert widths[0] < 2 and widths[-1] > 12


@pytest.mark.parametrize("size", [(64, 112), (37, 53)])
def test_nothing_is_shifted(size: tuple[int, int]) -> None:
    """A mirrored input gives the mirrored result; a kernel or a resize that is off by half a pixel would not."""
    depth = depth_map(1, 1, *size)
    for i in range(1, MAX_LEVEL + 1):
        degraded = degrade(depth, level(i))
        for side in (-1, -2):
            torch.testing.assert_close(degrade(depth.flip(side), level(i)), degraded.flip(side), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 112), (37, 53), (9, 5), (2, 3)])
def test_shape_range_and_constants_are_kept(size: tuple[int, int]) -> None:
    for i in range(MAX_LEVEL + 1):
        degraded = degrade(depth_map(1, 2, *size), level(i))
        assert degraded.shape == (1, 2, *size) and degraded.min() >= 0 and degraded.max() <= 1 + 1e-6
        constant = torch.full((1, 2, *size), 0.37)
        torch.testing.assert_close(degrade(constant, level(i)), constant, rtol=1e-5, atol=1e-6)


def test_a_batch_of_mixed_levels_equals_separate_calls() -> None:
    depth, levels = depth_map(b=5, n=3, h=32, w=48), level(3, 0, 7, 3, 1)
    degraded = degrade(depth, levels)
    for i in range(5):
        torch.testing.assert_close(
            degraded[i : i + 1], degrade(depth[i : i + 1], levels[i : i + 1]), rtol=1e-5, atol=1e-6
        )


def test_frames_do_not_leak_into_each_other() -> None:
    depth = depth_map(n=3, h=32, w=48)
    alone = torch.cat([degrade(depth[:, i : i + 1], level(5)) for i in range(3)], dim=1)
    torch.testing.assert_close(degrade(depth, level(5)), alone, rtol=1e-5, atol=1e-6)


def test_level_channels_distinguish_all_levels() -> None:
    channels = level_channels(torch.arange(MAX_LEVEL + 1), (2, 3, 5))
    assert channels.shape == (MAX_LEVEL + 1, 2, LEVEL_CHANNELS, 3, 5) and channels.dtype == torch.float32
    assert torch.equal(channels, channels[:, :1, :, :1, :1].expand_as(channels))  # constant over frames and space
    codes = channels[:, 0, :, 0, 0]
    assert codes.abs().max() <= 1
    distances = torch.cdist(codes, codes)
    assert distances[~torch.eye(len(codes), dtype=torch.bool)].min() > 0.3
    # neighboring levels are closer than distant ones
    assert distances.diagonal(1).max() < torch.stack([distances[i, j] for i in range(8) for j in range(i + 3, 8)]).min()
