"""Many values on few points: what a chart of a long run is drawn with."""

from itertools import pairwise

import numpy as np

MOST_POINTS = 800  # of one line
SMOOTH_POINTS = 300  # of a smoothed one, which has no spikes to keep
WINDOW = 0.03  # of all rows are under the window that smooths


def thin(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Indices (k,), ascending, k <= most: the first, the last, and of each stretch between the lowest and the highest.

    `values` (n,) are finite. No spike is lost: the extremes of all values are among those kept.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(1, count - 1, (most - 2) // 2 + 1).astype(int)
    kept = [0, count - 1]
    for start, end in pairwise(edges):
        stretch = values[start:end]
        kept += [start + int(stretch.argmin()), start + int(stretch.argmax())]
    return np.unique(kept)


def evenly(count: int, most: int) -> np.ndarray:
    """Indices (k,), ascending, k <= most, spread over `count`; the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def smooth(values: np.ndarray) -> np.ndarray:
    """A running mean (n,) of a running mean, centred: as a triangle of weights, cut off at the ends."""
    half = max(2, round(len(values) * WINDOW / 2))
    return _running_mean(_running_mean(values, half), half)


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    places = np.arange(len(values))
    start, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[start]) / (end - start)


def means(values: np.ndarray, most: int) -> np.ndarray:
    """(k, ...), k <= most: the mean of each of as many stretches of (n, ...), equally long to one."""
    edges = np.linspace(0, len(values), min(len(values), most) + 1).astype(int)
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))
