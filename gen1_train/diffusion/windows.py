"""Overlapping windows over videos that are longer or larger than what the model has learned, blended in every step.

All of this is ours. Each place of the video has one latent. A step predicts it in every window that contains it and
takes the weighted mean, so that windows cannot drift apart and there are no seams (MultiDiffusion, Bar-Tal et al.
2023). Frames, rows and columns are three axes of one kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

Axis = list[tuple[slice, Tensor]]  # windows along it: their places, and their weights there


@dataclass(frozen=True)
class Window:
    """A part of a video of latents, and the weights of its prediction there."""

    part: tuple[slice, slice, slice]  # frames, rows and columns
    weights: Tensor  # (frames, 1, rows, columns); over all windows, they sum to one in each place


def windows_over(frames: Axis, rows: Axis, columns: Axis) -> Iterator[Window]:
    """Yields all combinations of the windows along the three axes."""
    for (time, of_frames), (row, of_rows), (column, of_columns) in product(frames, rows, columns):
        yield Window((time, row, column), of_frames[:, None, None, None] * of_rows[:, None] * of_columns)


def overlapping(length: int, window: int, overlap: int | None) -> Axis:
    """Returns the windows along an axis, which overlap, see `window_starts`."""
    starts = window_starts(length, window, overlap)
    weights = window_weights(starts, window, length)
    return [(slice(start, min(start + window, length)), part) for start, part in zip(starts, weights)]


def consecutive(length: int, window: int) -> Axis:
    """Returns windows without an overlap; the last one may be shorter."""
    parts = [slice(start, min(start + window, length)) for start in range(0, length, window)]
    return [(part, torch.ones(part.stop - part.start)) for part in parts]


def window_starts(length: int, window: int, overlap: int | None = None) -> list[int]:
    """Returns where each window over an axis starts; the last one is moved back so that it is full.

    `overlap` is less than `window`; None: half a window, rounded down.
    """
    if length <= window:
        return [0]
    starts = list(range(0, length - window + 1, window - (window // 2 if overlap is None else overlap)))
    if starts[-1] + window < length:
        starts.append(length - window)
    return starts


def window_weights(starts: list[int], window: int, length: int) -> Tensor:
    """Returns the weights in each window, (windows, min(window, length)); they sum to one in each place of the axis.

    A window has the most weight in its middle and the least at its ends, where the model sees the least around.
    """
    size = min(window, length)
    position = torch.arange(size, dtype=torch.float64)
    tent = torch.minimum(position + 1, size - position)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += tent
    return torch.stack([tent / total[start : start + size] for start in starts]).float()
