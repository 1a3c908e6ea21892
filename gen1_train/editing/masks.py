"""Masks: those by depth, the foreground or the background of a video, and what latents see of a mask."""

from collections.abc import Iterator

import numpy as np
import torch

from gen1_train.editing.clip_structure import ClipStructure
from gen1_train.errors import UserError
from gen1_train.frozen.structure.combined import parts_of, plane_of
from gen1_train.frozen.structure.depth import DepthEstimator

BY_DEPTH = ("foreground", "background")
BINS = 256


def mask_by_depth(structure: ClipStructure, kind: str) -> Iterator[np.ndarray]:
    """Yields a float32 mask (h, w) for each frame: 1 on the foreground (or the background) of the whole video, else 0.

    The threshold is Otsu's (1979) over the depths of all frames, so that it does not flicker; ours. Raises UserError
    when no plane of the structure is depth, or when the depth is the same everywhere.
    """
    parts = parts_of(structure.estimator)
    number = next((number for number, part in enumerate(parts) if isinstance(part, DepthEstimator)), None)
    if number is None:
        raise UserError(f"mask={kind} needs depth, and this checkpoint has another structure: give a mask file")
    histogram = torch.zeros(BINS, dtype=torch.float64)
    for maps in structure.at(0):
        depth = plane_of(structure.estimator, maps, number)
        histogram += torch.histc(depth.double(), BINS, 0, 1)
    threshold = otsu(histogram.numpy())
    for maps in structure.at(0):
        near = plane_of(structure.estimator, maps, number) >= threshold  # 1 is nearest
        yield from (near if kind == "foreground" else ~near).float().numpy()


def otsu(histogram: np.ndarray) -> float:
    """Returns the threshold in [0, 1] that splits a histogram of values in [0, 1] with the least variance in the parts.

    Raises UserError when all values are the same.
    """
    centers = (np.arange(len(histogram)) + 0.5) / len(histogram)
    below = histogram.cumsum()[:-1]
    above = histogram.sum() - below
    sums = (histogram * centers).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    if not np.nansum(between):
        raise UserError("the depth is the same everywhere, so there is no foreground: give a mask file")
    between = np.nan_to_num(between)
    return float(np.flatnonzero(between == between.max()).mean() + 1) / len(histogram)  # the middle of an empty range


def latent_mask(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """Brings a mask (m, h, w) in [0, 1] to latents, (m, 1, h/f, w/f): the maximum over the pixels of each latent."""
    return torch.nn.functional.max_pool2d(mask[:, None].float(), factor)
