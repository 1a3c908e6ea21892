"""Reduces many values to few points, for the charts of long runs."""

from itertools import pairwise

import numpy as np

MOST_POINTS = 800  # of one line
SMOOTH_POINTS = 300  # of a smoothed line, which has no spikes
WINDOW = 0.03  # width of the smoothing window, as a share of all rows


def thin(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Returns ascending indices (k,), k <= most: first, last, and the minimum and maximum of each interval between.

    `values` (n,) are finite. Spikes are preserved, because every extreme value is kept.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(1, count - 1, (most - 2) // 2 + 1).astype(int)
    kept = [0, count - 1]
    for start, end in pairwise(edges):
        interval = values[start:end]
        kept += [start + int(interval.argmin()), start + int(interval.argmax())]
    return np.unique(kept)


def evenly(count: int, most: int) -> np.ndarray:
    """Returns ascending indices (k,), k <= most, evenly spaced over `count`, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def smooth(values: np.ndarray) -> np.ndarray:
    """Applies a centered running mean (n,) twice: a triangular window, truncated at the ends."""
    half = max(2, round(len(values) * WINDOW / 2))
    return _running_mean(_running_mean(values, half), half)


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    positions = np.arange(len(values))
    start = np.maximum(positions - half, 0)
    end = np.minimum(positions + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[start]) / (end - start)


def means(values: np.ndarray, most: int) -> np.ndarray:
    """Returns (k, ...), k <= most: the means of intervals of (n, ...) whose lengths differ by at most one."""
    edges = np.linspace(0, len(values), min(len(values), most) + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))
