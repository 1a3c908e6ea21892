"""Structure: several kinds at once, each in a plane of its own. Ours, not the paper's, which has depth alone."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Span = tuple[float, float]


class CombinedEstimator:
    """Runs two or three estimators on the same frames and stacks their maps: a plane is that of its estimator alone."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        """`parts`: kind -> `StructureEstimator`, in the order of the planes."""
        self.parts = dict(parts)
        self.normalisation = "; ".join(f"{kind}: {part.normalisation}" for kind, part in self.parts.items())
        self.subject = next((part.subject for part in self.parts.values() if part.subject is not None), None)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the kinds and fingerprints of its estimators, in order."""
        return _hash([(kind, part.fingerprint) for kind, part in self.parts.items()])

    @property
    def architecture(self) -> str:
        return _hash([(kind, part.architecture) for kind, part in self.parts.items()])

    def record(self) -> dict[str, Any]:
        """The settings of each kind, for a manifest."""
        return {kind: part.record() for kind, part in self.parts.items()}

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, h, w, 3) -> raw maps (n, p, h, w), float32."""
        return torch.stack([part(frames) for part in self.parts.values()], dim=1)

    def normalise(self, raw: Tensor, span: Sequence[Span] | None = None) -> tuple[Tensor, tuple[Span, ...]]:
        """Normalizes each plane of one clip (n, p, h, w) as its estimator does; the ranges are those of the planes."""
        spans: Sequence[Span | None] = span or [None] * len(self.parts)
        planes = [part.normalise(*given) for part, *given in zip(self.parts.values(), raw.unbind(1), spans)]
        return torch.stack([maps for maps, _ in planes], dim=1), tuple(extent for _, extent in planes)


def parts_of(estimator: Any) -> tuple[Any, ...]:
    """Returns the estimator of each plane; a single kind has one."""
    return tuple(estimator.parts.values()) if isinstance(estimator, CombinedEstimator) else (estimator,)


def plane_of(estimator: Any, maps: Tensor, number: int) -> Tensor:
    """Returns one plane (n, h, w) of an estimator's maps, raw or normalized."""
    return maps[:, number] if isinstance(estimator, CombinedEstimator) else maps


def count_empty(estimator: Any, maps: Tensor) -> int | None:
    """Counts the frames without the estimator's `subject`: their plane of it is all 0. None if it has no subject.

    `maps`: (n, h, w), or (n, p, h, w) of several planes.
    """
    planes = [
        plane_of(estimator, maps, number) for number, part in enumerate(parts_of(estimator)) if part.subject is not None
    ]
    return int((~torch.stack([plane.flatten(1).any(dim=1) for plane in planes])).any(dim=0).sum()) if planes else None


def widest(spans: Sequence[Any]) -> Any:
    """Returns the range over the parts of a clip, from those of the parts; for several planes, that of each."""
    if isinstance(spans[0][0], tuple):
        return tuple(widest(each) for each in zip(*spans))
    lows, highs = zip(*spans)
    return min(lows), max(highs)


def _hash(parts: list[tuple[str, str]]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
