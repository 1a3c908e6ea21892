"""What the estimators share that have no network: each frame alone gives a map, in the same range in every clip."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen1_train.frozen.loading import architecture


class PerFrameEstimator:
    """A structure estimator whose maps need no normalization. A subclass has `config` and `map_of`."""

    subject: str | None = None
    config: Any

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
