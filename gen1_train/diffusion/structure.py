"""How much structure the model sees: t_s rounds of blurring and downsampling of the depth map (paper section 3.2.1).

The blur kernel and the factor of a round are ours: the paper does not give them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LEVEL = 7  # t_s is uniform over 0..7 in stage 5
FACTOR = math.sqrt(2)  # of the downsampling in each round: 7 rounds leave 448x256 with 40x23; ours
LEVEL_CHANNELS = 4
_KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)  # binomial, sums to 16


def degrade(depth: Tensor, levels: Tensor) -> Tensor:
    """Depth (b, n, h, w), rounds t_s (b,) -> (b, n, h, w), back at the frame's size. Level 0 returns its input."""
    result = depth.clone()
    for level in levels.unique().tolist():
        if level:
            chosen = levels == level
            result[chosen] = _rounds(depth[chosen], level)
    return result


def _rounds(depth: Tensor, rounds: int) -> Tensor:
    height, width = depth.shape[-2:]
    x = depth.flatten(0, 1).unsqueeze(1)  # (b n) 1 h w
    for i in range(1, rounds + 1):
        size = tuple(max(2, round(side / FACTOR**i)) for side in (height, width))
        x = F.interpolate(_blur(x), size=size, mode="bilinear", antialias=True, align_corners=False)
    x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return x.view(depth.shape)


def _blur(x: Tensor) -> Tensor:
    kernel = torch.tensor(_KERNEL, dtype=x.dtype, device=x.device) / sum(_KERNEL)
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 5))
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="replicate"), kernel.view(1, 1, 5, 1))


def level_channels(levels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """t_s (b,) as four sinusoidal channels, constant over frames and space: (b, n, 4, h, w) for shape (n, h, w).

    The frequencies are ours: 1 separates neighbouring levels, 1/3 orders all eight without going round.
    """
    angles = levels.float()[:, None] * torch.tensor([1.0, 1 / 3], device=levels.device)
    channels = torch.cat([angles.sin(), angles.cos()], dim=-1)  # b 4
    n, h, w = shape
    return channels[:, None, :, None, None].expand(-1, n, -1, h, w)
