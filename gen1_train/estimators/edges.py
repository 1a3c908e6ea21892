"""Structure: Canny edges by OpenCV. Not the paper's: an estimator without weights that runs anywhere."""

from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from gen1_train.errors import UserError
from gen1_train.frozen import fingerprint

NORMALISATION = "Canny edges, 1 is an edge and 0 is none, the same in every clip"
VERSION = "edges 1"  # of what is done here besides the settings; a change that moves an edge needs a new one
REFERENCE = 256  # pixels of the shorter side of the frame that `blur` is meant for: the paper's 448x256


@dataclass
class EdgesConfig:
    """All values are ours."""

    blur: float = 1.0  # standard deviation in pixels of a frame of 256, in proportion at other sizes; 0: none
    low: float = 15.0  # of 255: an edge goes on where the brightness changes by a step as large as this
    high: float = 35.0  # and begins only at a step as large as this


class EdgesEstimator:
    """uint8 frames -> 1 on edges, 0 elsewhere; each frame alone."""

    normalisation = NORMALISATION

    def __init__(self, config: EdgesConfig, device: str | torch.device = "cpu") -> None:
        """`device` is not used: OpenCV works on the CPU. Raises UserError for settings that make no sense."""
        if config.blur < 0 or not 0 <= config.low <= config.high:
            raise UserError(
                f"edges.blur={config.blur}, edges.low={config.low}, edges.high={config.high}: give a blur of 0 or "
                "above and 0 <= low <= high"
            )
        self.config = config

    @property
    def fingerprint(self) -> str:
        return fingerprint(nn.Identity(), VERSION, sorted(asdict(self.config).items()))

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, h, w, 3) -> edges (n, h, w), float32, 0 or 1."""
        return torch.from_numpy(np.stack([self._edges(frame) for frame in frames.cpu().numpy()]))

    def normalise(self, raw: Tensor, span: tuple[float, float] | None = None) -> tuple[Tensor, tuple[float, float]]:
        """Edges (n, h, w) of one clip as they are, and their range."""
        return raw, (0.0, 1.0)

    def _edges(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        blur = self.config.blur * min(frame.shape[:2]) / REFERENCE
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if blur:
            grey = cv2.GaussianBlur(grey, (0, 0), blur)
        low, high = (step * _gradient_of_a_step(blur) for step in (self.config.low, self.config.high))
        return (cv2.Canny(grey, low, high, L2gradient=True) > 0).astype(np.float32)


def _gradient_of_a_step(blur: float) -> float:
    """The largest 3x3 Sobel response to a straight step of 1 that was blurred by `blur` pixels.

    Thresholds in these units keep their meaning at every size of the frame, since the blur grows with the size.
    """
    if not blur:
        return 4.0
    below = NormalDist(sigma=blur).cdf  # the step lies half a pixel from the middle of the kernel
    return 4 * (below(1.5) - below(-0.5))
