"""Overlapping windows over videos that are longer or larger than what the model has learned, blended in every step.

All of this is ours. Each place of the video has one latent. A step predicts it in every window that contains it and
takes the weighted mean, so that windows cannot drift apart and there are no seams (MultiDiffusion, Bar-Tal et al.
2023). Frames, rows and columns are three axes of one kind.
"""

from collections.abc import Iterator, Sequence
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


def overlapping(length: int, window: int, overlap: int | None, shorter: Sequence[int] = ()) -> Axis:
    """Returns the windows along an axis, which overlap, see `window_places`."""
    places = window_places(length, window, overlap, shorter)
    return list(zip(places, window_weights(places, length)))


def consecutive(length: int, window: int) -> Axis:
    """Returns windows without an overlap; the last one may be shorter."""
    parts = [slice(start, min(start + window, length)) for start in range(0, length, window)]
    return [(part, torch.ones(part.stop - part.start)) for part in parts]


def window_places(length: int, window: int, overlap: int | None = None, shorter: Sequence[int] = ()) -> list[slice]:
    """Returns the places of each window over an axis; the last one is moved back so that it is full.

    `overlap` is less than `window`; None: half a window, rounded down. `shorter`: other sizes that the last window may
    have if there is more than one. It has the least with which it still overlaps the one before as much as windows of
    its size do, so that the rest of a video costs no more than it has to.
    """

    def in_common(size: int) -> int:
        return size // 2 if overlap is None else overlap

    if length <= window:
        return [slice(0, length)]
    ends = list(range(window, length + 1, window - in_common(window)))
    places = [slice(end - window, end) for end in ends]
    rest = length - ends[-1]
    if rest:
        size = next(size for size in (*sorted(shorter), window) if size == window or size - in_common(size) >= rest)
        places.append(slice(length - size, length))
    return places


def window_weights(places: Sequence[slice], length: int) -> list[Tensor]:
    """Returns the weights in each window, (size,); over all windows, they sum to one in each place of the axis.

    A window has the most weight in its middle and the least at its ends, where the model sees the least around.
    """
    total = torch.zeros(length, dtype=torch.float64)
    tents = [_tent(place.stop - place.start) for place in places]
    for place, tent in zip(places, tents):
        total[place] += tent
    return [(tent / total[place]).float() for place, tent in zip(places, tents)]


def _tent(size: int) -> Tensor:
    position = torch.arange(size, dtype=torch.float64)
    return torch.minimum(position + 1, size - position)
