"""Structure: soft edges, the gradient of the blurred brightness. Ours, not the paper's: without weights, as `edges`.

Unlike Canny edges, they have a strength and no threshold, so that weak contours are not lost and do not come and go
from frame to frame.
"""

from dataclasses import dataclass

import numpy as np

from gen1_train.errors import UserError
from gen1_train.frozen.structure.edges import REFERENCE
from gen1_train.frozen.structure.per_frame import PerFrameEstimator

NORMALISATION = "soft edges, 1 is a strong edge and 0 is none, the same in every clip"


@dataclass
class SoftEdgesConfig:
    """All values are ours."""

    blur: float = 2.0  # standard deviation in pixels of a 448x256 frame, scaled for other sizes; 0: none
    contrast: float = 48.0  # of 255: a straight step of c in brightness has the value tanh(c / contrast)

    def check(self) -> None:
        """Raises UserError for settings out of their ranges."""
        if self.blur < 0 or self.contrast <= 0:
            raise UserError(
                f"soft_edges.blur={self.blur}, soft_edges.contrast={self.contrast}: give a blur of 0 or above, and a "
                "contrast above 0"
            )


class SoftEdgesEstimator(PerFrameEstimator):
    """Estimates how strong an edge each pixel of a uint8 frame is on.

    The magnitude of the gradient is measured in that of a straight step of brightness, which makes it independent of
    the size of the frame, as its blur is. It is mapped to [0, 1] by tanh: in proportion for weak edges, and close to 1
    for strong ones without cutting off their profile. This is the same in every frame, so that nothing flickers when an
    edge comes or goes.
    """

    normalisation = NORMALISATION
    version = "soft edges 1"

    def map_of(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        blur = self.config.blur * min(frame.shape[:2]) / REFERENCE
        gradient = _gradient(cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2GRAY), blur)
        size = int(5 * blur) + 2  # the blur ends after four deviations
        step = np.zeros((1, 2 * size), np.float32)
        step[:, size:] = self.config.contrast
        return np.tanh(gradient / _gradient(step, blur).max())


def _gradient(gray: np.ndarray, blur: float) -> np.ndarray:
    """The magnitude of the gradient of brightness (h, w) that was blurred by `blur` pixels."""
    import cv2

    if blur:
        gray = cv2.GaussianBlur(gray, (0, 0), blur)
    # not cv2.magnitude, whose last bit depends on where in memory the arrays are
    return np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
