"""What the estimators share that have no network: each frame alone gives a map, in the same range in every clip."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gen1_train.frozen.loading import architecture, fingerprint


class PerFrameEstimator:
    """A structure estimator whose maps need no normalization. A subclass has `version` and `map_of`."""

    subject: str | None = None
    version: str  # of the algorithm; a change that moves a value needs a new version

    def __init__(self, config: Any, device: str | torch.device = "cpu", recorded: bool = False) -> None:
        """`device` and `recorded` are not used: the CPU computes, and no file is read.

        Raises UserError for settings out of their ranges.
        """
        config.check()
        self.config = config

    @property
    def fingerprint(self) -> str:
        return fingerprint(nn.Identity(), self.version, sorted(asdict(self.config).items()))

    @property
    def architecture(self) -> str:
        """The same for all: the fingerprint covers everything."""
        return architecture()

    def record(self) -> dict[str, Any]:
        """The settings for a manifest."""
        return asdict(self.config)

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, h, w, 3) -> maps (n, h, w), float32 in [0, 1]."""
        return torch.from_numpy(np.stack([self.map_of(np.ascontiguousarray(each)) for each in frames.cpu().numpy()]))

    def normalise(self, raw: Tensor, span: tuple[float, float] | None = None) -> tuple[Tensor, tuple[float, float]]:
        """Returns the maps (n, h, w) of one clip unchanged, with their range."""
        return raw, (0.0, 1.0)

    def map_of(self, frame: np.ndarray) -> np.ndarray:
        """uint8 frame (h, w, 3) -> map (h, w), float32 in [0, 1]."""
        raise NotImplementedError
