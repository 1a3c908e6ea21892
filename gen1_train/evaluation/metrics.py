"""The numbers: the paper's two consistencies, structure fidelity, and flicker. None where a metric says nothing.

Cosines, correlation and absolute errors are torchmetrics', optical flow is OpenCV's; its CLIPScore takes networks of
transformers alone, and is the same cosine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError
from torchmetrics.functional import cosine_similarity, mean_absolute_error, pairwise_cosine_similarity, pearson_corrcoef

DIGITS = 6  # of a result: what is below comes from the order of sums


@dataclass(frozen=True)
class Metric:
    title: str
    higher_is_better: bool
    about: str


METRICS = {
    "frame_consistency": Metric("frame consistency", True, "CLIP cosine of consecutive frames"),
    "prompt_consistency": Metric("prompt consistency", True, "CLIP cosine of frames and prompt"),
    "structure_correlation": Metric("structure correlation", True, "of the output's structure with the input's"),
    "structure_error": Metric("structure error", False, "after alignment, in shares of the input's range"),
    "warp_error": Metric("warp error", False, "along the input's optical flow, of pixels in [0, 1]"),
}


def frame_consistency(embeddings: Tensor) -> float | None:
    """CLIP image embeddings of the frames (n, d) -> mean cosine of consecutive ones; None for a single frame."""
    if len(embeddings) < 2:
        return None
    return _rounded(cosine_similarity(embeddings[1:].double(), embeddings[:-1].double(), reduction="mean"))


def prompt_consistency(embeddings: Tensor, prompt: Tensor) -> float | None:
    """CLIP image embeddings of the frames (n, d), text embedding of the prompt (d,) -> mean cosine over the frames."""
    return _rounded(pairwise_cosine_similarity(embeddings.double(), prompt.double()[None]).mean())


def structure_fidelity(output: Tensor, reference: Tensor) -> tuple[float | None, float | None]:
    """Structure of output and input as the estimator gives it, raw (n, h, w) -> (correlation, relative error).

    Estimated depth is known up to a scale and a shift: least squares over the whole clip brings the output's to the
    input's (a negative scale, depth turned inside out, is not allowed), and the relative error is the mean absolute
    difference in shares of the input's range. Both None where the input's structure is flat, the first where the
    output's is. The paper measures no such thing: ours.
    """
    x, y = output.double().flatten(), reference.double().flatten()
    span = y.max() - y.min()
    if span <= 1e-9:
        return None, None
    covariance = torch.cov(torch.stack([x, y]), correction=0)
    flat = x.max() - x.min() <= 1e-9
    scale = torch.zeros(()) if flat else (covariance[0, 1] / covariance[0, 0]).clamp(min=0)
    aligned = scale * (x - x.mean()) + y.mean()
    correlation = None if flat else _rounded(pearson_corrcoef(x, y))
    return correlation, _rounded(mean_absolute_error(aligned, y) / span)


def warp_error(frames: np.ndarray, reference: np.ndarray) -> float | None:
    """Flicker: each frame against the one before it, moved along the optical flow of the input.

    uint8 output and input, both (n, h, w, 3) -> mean absolute difference of pixels in [0, 1] wherever the input's flow
    is certain, see `flows`; None for a single frame, or if it is nowhere. Warp error with occlusions masked as in Lai
    et al. (arXiv 1808.00449); the paper does not measure it: ours.
    """
    error, places = MeanAbsoluteError().set_dtype(torch.float64), 0
    for t, (flow, certain) in enumerate(flows(reference)):
        # cv2 interpolates 8 bits in 8 bits
        before, now = (frames[i].astype(np.float32) / 255 for i in (t, t + 1))
        difference = torch.from_numpy(_moved(before, flow)[certain]).double(), torch.from_numpy(now[certain]).double()
        if certain.any():
            error.update(*difference)
            places += 1
    return _rounded(error.compute()) if places else None


def flows(frames: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each frame of uint8 (n, h, w, 3) but the first: where its pixels were in the frame before, and if that holds.

    Yields (flow float32 (h, w, 2) in pixels, bool (h, w)). Flow by DIS (Kroeger et al. 2016); certain is a pixel that
    was inside the frame, and comes back to its place by the flow the other way (bounds of Sundaram et al. 2010).
    """
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    for before, now in pairwise(grey):
        back, forth = dis.calc(now, before, None), dis.calc(before, now, None)
        returned = back + _moved(forth, back)
        size = (back**2).sum(-1) + (forth**2).sum(-1)
        x, y = _places(back)
        inside = (x >= 0) & (y >= 0) & (x <= now.shape[1] - 1) & (y <= now.shape[0] - 1)
        yield back, inside & ((returned**2).sum(-1) < 0.01 * size + 0.5)


def _places(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return x + flow[..., 0], y + flow[..., 1]


def _moved(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Values (h, w, c) at the places that the flow points to."""
    return cv2.remap(values, *_places(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _rounded(value: Tensor) -> float | None:
    """None for what is not finite: a network that gave the same for everything."""
    return round(float(value), DIGITS) if bool(value.isfinite()) else None
