"""Which part of a video is edited: from a file, or the foreground or background by its depth."""

import numpy as np
import torch

from gen1_train.editor import ClipStructure, Gen1Editor
from gen1_train.errors import UserError
from gen1_train.estimators.depth import DepthEstimator
from gen1_train.spool import Spool

BY_DEPTH = ("foreground", "background")
BINS = 256


def mask_by_depth(editor: Gen1Editor, structure: ClipStructure, kind: str, mask: Spool) -> None:
    """Fills `mask` with float32 (n, h, w): 1 on the foreground (or the background) of the whole video, 0 elsewhere.

    The threshold is Otsu's (1979) over the depths of all frames, so that it does not flicker; ours. Raises UserError
    where the structure is no depth, or has but one.
    """
    if not isinstance(editor.structure_estimator, DepthEstimator):
        raise UserError(f"mask={kind} needs depth, and this checkpoint's structure is another: give a mask file")
    histogram = torch.zeros(BINS, dtype=torch.float64)
    for depth in structure.at(0):
        histogram += torch.histc(depth.double(), BINS, 0, 1)
    threshold = otsu(histogram.numpy())
    for depth in structure.at(0):
        near = depth >= threshold  # 1 is nearest
        for frame in (near if kind == "foreground" else ~near).float().numpy():
            mask.append(frame)


def otsu(histogram: np.ndarray) -> float:
    """The value in [0, 1] that parts a histogram of such values in two with the least variance in the parts.

    Raises UserError when all is one value.
    """
    centres = (np.arange(len(histogram)) + 0.5) / len(histogram)
    below = histogram.cumsum()[:-1]
    above = histogram.sum() - below
    sums = (histogram * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    if not np.nansum(between):
        raise UserError("the depth is the same everywhere, so there is no foreground: give a mask file")
    best = np.nan_to_num(between)
    return float(np.flatnonzero(best == best.max()).mean() + 1) / len(histogram)  # the middle of an empty stretch
