"""The metrics: the paper's two consistencies, structure fidelity, and flicker. None where a metric is undefined.

Cosines, correlation and absolute errors are from torchmetrics, optical flow is from OpenCV. The CLIPScore of
torchmetrics is the same cosine, but takes networks of transformers only.
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

DIGITS = 6  # of a result: smaller differences come from the order of sums


@dataclass(frozen=True)
class Metric:
    title: str
    higher_is_better: bool
    about: str


METRICS = {
    "frame_consistency": Metric("frame consistency", True, "CLIP cosine of consecutive frames, as CLIP crops them"),
    "prompt_consistency": Metric("prompt consistency", True, "CLIP cosine of frames, as CLIP crops them, and prompt"),
    "structure_correlation": Metric("structure correlation", True, "of the output's structure with the input's"),
    "structure_error": Metric("structure error", False, "after alignment, in shares of the input's range"),
    "warp_error": Metric("warp error", False, "along the input's optical flow, of pixels in [0, 1]"),
}


def frame_consistency(embeddings: Tensor) -> float | None:
    """Returns the mean cosine of CLIP image embeddings (n, d) of consecutive frames; None for a single frame."""
    if len(embeddings) < 2:
        return None
    return _rounded(cosine_similarity(embeddings[1:].double(), embeddings[:-1].double(), reduction="mean"))


def prompt_consistency(embeddings: Tensor, prompt: Tensor) -> float | None:
    """Returns the mean cosine of the frames' CLIP image embeddings (n, d) with the prompt's text embedding (d,)."""
    return _rounded(pairwise_cosine_similarity(embeddings.double(), prompt.double()[None]).mean())


def structure_fidelity(output: Tensor, reference: Tensor) -> tuple[float | None, float | None]:
    """Returns the correlation and the relative error between the structure of output and input, both raw (n, h, w).

    Estimated depth is known up to a scale and a shift, so the output's is aligned with the input's by least squares
    over the whole clip. A negative scale, which would invert the depth, is not allowed. The relative error is the mean
    absolute difference divided by the input's range. Both are None if the input's structure is flat; the correlation
    is None if the output's is. The paper has no such metric: ours.
    """
    x = output.double().flatten()
    y = reference.double().flatten()
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
    """Returns the flicker: each frame compared with the one before, warped along the optical flow of the input.

    Output and input are uint8 (n, h, w, 3). The result is the mean absolute difference of pixels in [0, 1] where the
    input's flow is reliable, see `flows`; None for a single frame, or if the flow is reliable nowhere. It is the warp
    error of Lai et al. (arXiv 1808.00449), with occlusions masked; the paper does not measure it: ours.
    """
    error = MeanAbsoluteError().set_dtype(torch.float64)
    compared = False
    for t, (flow, reliable) in enumerate(flows(reference)):
        if reliable.any():
            before, now = (frames[i].astype(np.float32) / 255 for i in (t, t + 1))  # cv2 would interpolate 8 bits in 8
            warped = torch.from_numpy(_warped(before, flow)[reliable]).double()
            error.update(warped, torch.from_numpy(now[reliable]).double())
            compared = True
    return _rounded(error.compute()) if compared else None


def flows(frames: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for each frame of uint8 (n, h, w, 3) but the first, the flow back to the frame before it.

    Yields (flow float32 (h, w, 2) in pixels, reliable bool (h, w)). Flow is DIS (Kroeger et al. 2016). A pixel is
    reliable if it was inside the frame before, and if the forward flow brings it back (bounds of Sundaram et al. 2010).
    """
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    for before, now in pairwise(gray):
        backward = dis.calc(now, before, None)
        forward = dis.calc(before, now, None)
        returned = backward + _warped(forward, backward)
        size = (backward**2).sum(-1) + (forward**2).sum(-1)
        x, y = _targets(backward)
        inside = (x >= 0) & (y >= 0) & (x <= now.shape[1] - 1) & (y <= now.shape[0] - 1)
        yield backward, inside & ((returned**2).sum(-1) < 0.01 * size + 0.5)


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return x + flow[..., 0], y + flow[..., 1]


def _warped(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Samples values (h, w, c) at the pixels that the flow points to."""
    return cv2.remap(values, *_targets(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _rounded(value: Tensor) -> float | None:
    """None if not finite, as for a network whose outputs are all the same."""
    return round(float(value), DIGITS) if bool(value.isfinite()) else None
