"""Overlapping windows over videos that are longer than the model's clips, blended in every sampling step.

All of this is ours. Each frame has one latent. A step predicts it in every window
that contains it and takes the weighted mean, so that windows cannot drift apart and there are no seams (MultiDiffusion,
Bar-Tal et al. 2023, along time).
"""

import torch
from torch import Tensor


def window_starts(frames: int, window: int, overlap: int | None = None) -> list[int]:
    """Returns the first frame of each window over a video; the last window is moved back so that it is full.

    `overlap` is less than `window`; None: half a window, rounded down.
    """
    if frames <= window:
        return [0]
    starts = list(range(0, frames - window + 1, window - (window // 2 if overlap is None else overlap)))
    if starts[-1] + window < frames:
        starts.append(frames - window)
    return starts


def window_weights(starts: list[int], window: int, frames: int) -> Tensor:
    """Returns the weights of each window's frames, (windows, min(window, frames)); they sum to one in each frame.

    A window has the most weight in its middle and the least at its ends, where the model sees the fewest neighbors.
    """
    length = min(window, frames)
    position = torch.arange(length, dtype=torch.float64)
    tent = torch.minimum(position + 1, length - position)
    total = torch.zeros(frames, dtype=torch.float64)
    for start in starts:
        total[start : start + length] += tent
    return torch.stack([tent / total[start : start + length] for start in starts]).float()
