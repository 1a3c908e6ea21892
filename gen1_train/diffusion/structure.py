"""Structure levels: t_s rounds of blurring and downsampling of the depth map (paper section 3.3).

The blur kernel and the downsampling factor are ours: the paper does not give them. They are the same in pixels at every
size, so a level removes more from a smaller frame. Measured on a measured depth map (the motorcycle of Middlebury's
stereo set, 2014) and on a straight step:

| t_s = 7 at | edges are wide (10 to 90 %) | correlation with t_s = 0 | variance kept |
|---|---|---|---|
| 448x256 | 34 pixels, 8 % of the frame | 0.92 | 72 % |
| 112x64 | 34 pixels, 30 % of the frame | 0.80 | 35 % |

So at the paper's size large shapes and their distances remain, and their parts and outlines are gone.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LEVEL = 7  # t_s is uniform over 0..7 in stage 5
FACTOR = math.sqrt(2)  # downsampling per round: 7 rounds reduce 448x256 to 40x23; ours
LEVEL_CHANNELS = 4
_KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)  # binomial, sums to 16
# Names what `degrade` does: latents of degraded structure in a shard set are read only if theirs was the same. Its
# number is raised when the procedure changes.
DEGRADATION = f"1: blur {_KERNEL}, downsampling by {FACTOR:.6g} in each round"


def degrade(depth: Tensor, levels: Sequence[int]) -> Tensor:
    """Depth (b, n, h, w), rounds t_s (b) -> (b, n, h, w), resized back to the frame. Level 0 returns its input.

    The levels are on the host and index no tensor, because a GPU would have to be waited for.
    """
    clips = list(depth.unbind())
    for level in set(levels) - {0}:
        places = [place for place, other in enumerate(levels) if other == level]
        for place, blurred in zip(places, _rounds(torch.stack([clips[place] for place in places]), level)):
            clips[place] = blurred
    return torch.stack(clips)


def _rounds(depth: Tensor, rounds: int) -> Tensor:
    height, width = depth.shape[-2:]
    x = depth.flatten(0, 1).unsqueeze(1)  # (b n) 1 h w
    for i in range(1, rounds + 1):
        size = tuple(max(2, round(side / FACTOR**i)) for side in (height, width))
        x = F.interpolate(_blur(x), size=size, mode="bilinear", antialias=True, align_corners=False)
    x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return x.view(depth.shape)


@lru_cache
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a few numbers on a device. They are kept there: a copy from ordinary memory waits for a GPU."""
    return torch.tensor(values, dtype=dtype, device=device)


def _blur(x: Tensor) -> Tensor:
    kernel = constants(_KERNEL, x.dtype, x.device) / sum(_KERNEL)
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 5))
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="replicate"), kernel.view(1, 1, 5, 1))


def level_channels(levels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Encodes t_s (b,) as sinusoidal channels, constant over frames and space: (b, n, 4, h, w) for shape (n, h, w).

    The frequencies are ours: 1 separates neighboring levels, 1/3 orders all eight without wrapping around.
    """
    angles = levels.float()[:, None] * constants((1.0, 1 / 3), torch.float32, levels.device)
    channels = torch.cat([angles.sin(), angles.cos()], dim=-1)  # b 4
    n, h, w = shape
    return channels[:, None, :, None, None].expand(-1, n, -1, h, w)
