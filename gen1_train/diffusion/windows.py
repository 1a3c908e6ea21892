"""Videos longer than the model takes at once: overlapping windows, which are blended in every sampling step.

All of it is ours: the paper edits clips of one length. Each frame has one latent; a step predicts it in every window
that holds it and takes the weighted mean, so that windows cannot drift apart and no seam is cut (MultiDiffusion,
Bar-Tal et al. 2023, along time).
"""

import torch
from torch import Tensor


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """Where the windows over a video begin; the last one is moved back so that it is full."""
    if frames <= window:
        return [0]
    starts = list(range(0, frames - window + 1, window - overlap))
    if starts[-1] + window < frames:
        starts.append(frames - window)
    return starts


def window_weights(starts: list[int], window: int, frames: int) -> Tensor:
    """The weight of each window's frames, (windows, min(window, frames)); over each frame of the video they sum to one.

    A window counts most in its middle and least at its ends, where the model sees the fewest neighbours.
    """
    length = min(window, frames)
    position = torch.arange(length, dtype=torch.float64)
    tent = torch.minimum(position + 1, length - position)
    total = torch.zeros(frames, dtype=torch.float64)
    for start in starts:
        total[start : start + length] += tent
    return torch.stack([tent / total[start : start + length] for start in starts]).float()
