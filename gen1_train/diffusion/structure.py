"""Structure levels: t_s rounds of blurring and downsampling of the depth map (paper section 3.3).

The paper gives neither the blur nor the factor, so both procedures here are ours. A round blurs with variance 1 and
shrinks by the square root of 2, in pixels of the map that it gets. They differ in the frame that the rounds are for:

pixels      the frame as it is, so that a level removes more from a smaller frame: the procedure of older sets and
            checkpoints
relative    the frame at a shorter side of 256, as the paper's 448x256 has: a level leaves the same share of a frame at
            every size. There it is `pixels` bit by bit

How much of the frame's width an edge takes at t_s = 7 (10 to 90 %), how much of their contrast waves keep of a period
of half the width, and, for a map of random disks, the correlation with t_s = 0 and the variance kept
(benchmarks/structure_levels.py --only levels):

| t_s = 7 | at | edges | waves | correlation | variance |
|---|---|---|---|---|---|
| pixels | 112x64 | 31 % | 30 % | 0.50 | 8 % |
| pixels | 448x256 | 8 % | 93 % | 0.80 | 41 % |
| pixels | 896x512 | 4 % | 98 % | 0.89 | 61 % |
| relative | 112x64, 448x256 and 896x512 | 8 % | 93 % | 0.80 | 41 to 42 % |

So at the paper's size large shapes and their distances remain, and their parts and outlines are gone.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.diffusion.planes import Strengths

MAX_LEVEL = 7  # t_s is uniform over 0..7 in stage 5
FACTOR = math.sqrt(2)  # downsampling per round: 7 rounds reduce 448x256 to 40x23; ours
LEVEL_CHANNELS = 4
PIXELS = "pixels"
RELATIVE = "relative"
REFERENCE = 256  # the shorter side of a frame in which RELATIVE is PIXELS
AUTO = "auto"  # in the settings of a stage: as the shard set's
# Procedures, each with the name of what `degrade` does: latents of degraded structure in a shard set are read only if
# theirs was the same. A procedure that changes gets the next number.
DEGRADATIONS = {
    PIXELS: f"1: blur (1.0, 4.0, 6.0, 4.0, 1.0), downsampling by {FACTOR:.6g} in each round",
    RELATIVE: f"2: as 1 does at a shorter side of {REFERENCE}, scaled with the frame",
}


def degrade(depth: Tensor, levels: Sequence[int], degradation: str = PIXELS, shorter_side: int | None = None) -> Tensor:
    """Depth (b, n, h, w), rounds t_s (b) -> (b, n, h, w), resized back to the frame. Level 0 returns its input.

    Several planes, (b, n, p, h, w), are degraded alike.

    RELATIVE is relative to the part of the frame that the model sees at once: `shorter_side`, in pixels, is that of a
    window; None: all of it. The levels are on the host and index no tensor, because a GPU would have to be waited for.
    """
    seen = min(*depth.shape[-2:], math.inf if shorter_side is None else shorter_side)
    scale = {PIXELS: 1.0, RELATIVE: seen / REFERENCE}[degradation]
    clips = list(depth.unbind())
    for level in set(levels) - {0}:
        places = [place for place, other in enumerate(levels) if other == level]
        for place, blurred in zip(places, _rounds(torch.stack([clips[place] for place in places]), level, scale)):
            clips[place] = blurred
    return torch.stack(clips)


def scale_planes(structure: Tensor, strengths: Strengths) -> Tensor:
    """Structure (n, p, h, w) with each plane scaled toward 0; that of a single plane may be (n, h, w).

    At strengths of 1 it is returned as it is.
    """
    if all(strength == 1 for strength in strengths):
        return structure
    factors = constants(strengths, structure.dtype, structure.device)
    return structure * (factors.view(-1, 1, 1) if structure.ndim == 4 else factors)


def _rounds(depth: Tensor, rounds: int, scale: float) -> Tensor:
    """Degrades as the rounds do at the frame's size divided by `scale`, but never at more pixels than the frame has.

    A larger frame is first shrunk to that size. In a smaller one, the rounds on maps larger than the frame are not
    done: the next blur makes up for them. It has the variance that they would have added, with that of the resizes:
    a linear one to pixels of side s is a triangle of variance s^2 / 6. Variances are in sixths of a squared pixel at
    scale 1, where they are whole numbers and every blur comes out as 1.
    """
    height, width = depth.shape[-2:]
    x = depth.flatten(0, -3).unsqueeze(1)  # (b n) 1 h w, of several planes (b n p) 1 h w
    area = scale**-2  # of a pixel of x
    variance = 0.0  # that has been added to x
    for i in range(rounds + 1):
        if 2**i <= area:
            continue
        x = _blur(x, (_variance(i) - 2**i - variance) / (6 * area))
        size = tuple(max(2, round(side / scale / FACTOR**i)) for side in (height, width))
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        area = 2**i
        variance = max(_variance(i), area)
    if area == scale**-2:
        x = _blur(x, (_variance(rounds) + 2**rounds) / (6 * area))
    else:
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return x.view(depth.shape)


def _variance(rounds: int) -> int:
    """Returns what rounds at scale 1 add, see `_rounds`: each blurs by 1 and shrinks to pixels of area 2, 6 + 2."""
    return 8 * (2**rounds - 1)


@lru_cache
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a few numbers on a device. They are kept there: a copy from ordinary memory waits for a GPU."""
    return torch.tensor(values, dtype=dtype, device=device)


def _blur(x: Tensor, variance: float) -> Tensor:
    """Blurs maps (n, 1, h, w) in both directions, with a variance in pixels; 0 and less returns them."""
    if variance <= 0:
        return x
    kernel = constants(_kernel(variance), x.dtype, x.device)
    reach = len(kernel) // 2
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))


@lru_cache
def _kernel(variance: float) -> tuple[float, ...]:
    """Returns a kernel of this variance without negative frequencies; at 1, the binomial one, 1 4 6 4 1 of 16."""
    pairs = math.ceil(variance)
    side = variance / pairs / 4
    kernel = np.ones(1)
    for _ in range(2 * pairs):
        kernel = np.convolve(kernel, (side, 1 - 2 * side, side))
    return tuple(kernel.tolist())


def level_channels(levels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Encodes t_s (b,) as sinusoidal channels, constant over frames and space: (b, n, 4, h, w) for shape (n, h, w).

    The frequencies are ours: 1 separates neighboring levels, 1/3 orders all eight without wrapping around.
    """
    angles = levels.float()[:, None] * constants((1.0, 1 / 3), torch.float32, levels.device)
    channels = torch.cat([angles.sin(), angles.cos()], dim=-1)  # b 4
    n, h, w = shape
    return channels[:, None, :, None, None].expand(-1, n, -1, h, w)
