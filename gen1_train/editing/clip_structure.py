"""The estimated structure of a clip, and frames that are read in chunks."""

from collections.abc import Iterator
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from gen1_train.diffusion.planes import Choice, strengths_of
from gen1_train.diffusion.structure import PIXELS, degrade, scale_planes
from gen1_train.editing.spool import Spool
from gen1_train.frozen.structure.kinds import Span, StructureEstimator, kinds_in

CHUNK = 16  # frames that are estimated, encoded or decoded together: bounds memory, changes values by rounding only


class Frames(Protocol):
    """Frames that are read by slices: a numpy array, or a Spool on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class ClipStructure:
    """The estimated structure of a video: raw on disk, normalized over all frames as one clip when it is read."""

    def __init__(
        self,
        raw_frames: Spool,
        span: Span,
        estimator: StructureEstimator,
        empty_frames: int = 0,
        degradation: str = PIXELS,
        shorter_side: int | None = None,
    ) -> None:
        """`empty_frames`: how many frames lack the `subject` of the estimator.

        `degradation`, `shorter_side`: what t_s above 0 does, see `degrade`.
        """
        self.estimator = estimator
        self.empty_frames = empty_frames
        self._degradation = degradation
        self._shorter_side = shorter_side
        self._raw_frames = raw_frames
        self._span = span

    def at(self, t_s: int, choice: Choice | None = None) -> Iterator[Tensor]:
        """Yields the structure as the model sees it at a level: chunks (m, h, w) in [0, 1], or (m, p, h, w).

        `choice`: of its planes, see `strengths_of`, which raises UserError.
        """
        strengths = strengths_of(choice, kinds_in(self.estimator))
        for part in chunks(len(self._raw_frames)):
            structure, _ = self.estimator.normalise(torch.from_numpy(self._raw_frames[part]), self._span)
            structure = scale_planes(structure, strengths)
            yield degrade(structure[None], [t_s], self._degradation, self._shorter_side)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._raw_frames.close()


def chunks(frames: int) -> Iterator[slice]:
    for start in range(0, frames, CHUNK):
        yield slice(start, min(start + CHUNK, frames))
