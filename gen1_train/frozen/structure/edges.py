"""Structure: Canny edges by OpenCV. Ours, not the paper's: an estimator without weights that runs anywhere."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gen1_train.errors import UserError
from gen1_train.frozen.structure.per_frame import PerFrameEstimator

NORMALISATION = "Canny edges, 1 is an edge and 0 is none, the same in every clip"
REFERENCE = 256  # pixels of the shorter side of a frame to which `blur` refers: the paper's 448x256


@dataclass
class EdgesConfig:
    """All values are ours."""

    blur: float = 1.0  # standard deviation in pixels of a 448x256 frame, scaled for other sizes; 0: none
    low: float = 15.0  # of 255: an edge continues where the brightness changes by at least this much
    high: float = 35.0  # and starts only where it changes by at least this much

    def check(self) -> None:
        """Raises UserError for settings out of their ranges."""
        if self.blur < 0 or not 0 <= self.low <= self.high:
            raise UserError(
                f"edges.blur={self.blur}, edges.low={self.low}, edges.high={self.high}: give a blur of 0 or "
                "above and 0 <= low <= high"
            )


class EdgesEstimator(PerFrameEstimator):
    """Detects edges in each uint8 frame alone: 1 on edges, 0 elsewhere."""

    normalisation = NORMALISATION
    version = "edges 1"

    def map_of(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        blur = self.config.blur * min(frame.shape[:2]) / REFERENCE
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if blur:
            gray = cv2.GaussianBlur(gray, (0, 0), blur)
        scale = _gradient_of_a_step(blur)
        low, high = self.config.low * scale, self.config.high * scale
        return (cv2.Canny(gray, low, high, L2gradient=True) > 0).astype(np.float32)


def _gradient_of_a_step(blur: float) -> float:
    """The largest 3x3 Sobel response to a straight step of 1 that was blurred by `blur` pixels.

    Thresholds in these units have the same meaning at every frame size because the blur grows with the size.
    """
    if not blur:
        return 4.0
    cdf = NormalDist(sigma=blur).cdf  # the step is half a pixel from the center of the kernel
    return 4 * (cdf(1.5) - cdf(-0.5))
