"""The structure of a clip as a choice: one small protocol, and the estimators that keep it. The paper's is depth."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.estimators.depth import DepthConfig, DepthEstimator
from gen1_train.estimators.edges import EdgesConfig, EdgesEstimator

Span = tuple[float, float]


class StructureEstimator(Protocol):
    """Frames -> one value a pixel, raw; then, over all frames of a clip, [0, 1]. Calls leave no trace in it."""

    normalisation: str  # one line for the metadata: what 0 and 1 mean

    @property
    def fingerprint(self) -> str:
        """sha256 over all that changes a value: weights, settings, normalisation."""

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (m, h, w, 3), of any number of clips -> float32 (m, h, w) on the CPU, in any range."""

    def normalise(self, raw: Tensor, span: Span | None = None) -> tuple[Tensor, Span]:
        """What it made of the frames of ONE clip (n, h, w) -> ([0, 1], the range that became 0 and 1).

        `span`: that range, where it is known already: of a clip that comes in parts, the lowest and highest of theirs.
        """


# kind -> the class of its settings, and how it is built from them; what an estimator imports, it imports when built
STRUCTURES: dict[str, tuple[type, Callable[[Any, str | torch.device], StructureEstimator]]] = {
    "depth": (DepthConfig, DepthEstimator),
    "edges": (EdgesConfig, EdgesEstimator),
}


def structure_config(kind: str, settings: Mapping[str, Any]) -> Any:
    """The config of a kind of structure from plain settings, as a manifest holds them. Raises UserError."""
    config = _known(kind)[0]
    names = [field.name for field in fields(config)]
    unknown = sorted(settings.keys() - set(names))
    if unknown:
        raise UserError(f"structure={kind} has no setting {unknown[0]}; its settings are {', '.join(names)}")
    return config(**settings)


def build_structure(kind: str, config: Any, device: str | torch.device = "cpu") -> StructureEstimator:
    """The estimator of a kind, `config` being of that kind. Raises UserError for an unknown kind, or if it fails."""
    return _known(kind)[1](config, device)


def _known(kind: str) -> tuple[type, Callable[[Any, str | torch.device], StructureEstimator]]:
    if kind not in STRUCTURES:
        raise UserError(f"there is no structure {kind!r}; choose from {', '.join(STRUCTURES)}")
    return STRUCTURES[kind]
