"""The choice of a structure estimator: the protocol and its implementations. The paper's structure is depth.

A structure is of one kind, or of two or three: `depth+edges` has a plane of each, see `combined`.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from gen1_train.batch import MAX_PLANES
from gen1_train.diffusion.planes import JOIN, kinds_of
from gen1_train.errors import UserError
from gen1_train.frozen.structure.combined import CombinedEstimator
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from gen1_train.frozen.structure.edges import EdgesConfig, EdgesEstimator
from gen1_train.frozen.structure.face import FaceConfig, FaceEstimator
from gen1_train.frozen.structure.soft_edges import SoftEdgesConfig, SoftEdgesEstimator

Span = Any  # the two floats that are mapped to 0 and 1; for several planes, a tuple of those of each plane


class StructureEstimator(Protocol):
    """Estimates one raw value per pixel, then normalizes it to [0, 1] over the frames of a clip. It has no state.

    The maps of several planes are (m, p, h, w) in place of (m, h, w).
    """

    normalisation: str  # one line for the metadata: the meaning of 0 and 1
    subject: str | None  # what a frame may lack, so that its map is all 0, such as a face; such frames are counted

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that affects a value: weights, settings, normalization."""

    @property
    def architecture(self) -> str:
        """The sha256 of the network's settings that its weights do not show."""

    def record(self) -> dict[str, Any]:
        """The settings for a manifest, from which `structure_config` and `build_structure` make an equal estimator."""

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (m, h, w, 3), from any number of clips -> float32 (m, h, w) on the CPU, in any range."""

    def normalise(self, raw: Tensor, span: Span | None = None) -> tuple[Tensor, Span]:
        """Normalizes the raw values of ONE clip (n, h, w) to [0, 1]; returns them with the range mapped to 0 and 1.

        `span` sets that range: for a clip that comes in parts, the minimum and maximum over all parts.
        """


# kind -> (settings class, estimator class); an estimator imports its libraries only when it is built
STRUCTURES: dict[str, tuple[type, Callable[[Any, str | torch.device, bool], StructureEstimator]]] = {
    "depth": (DepthConfig, DepthEstimator),
    "edges": (EdgesConfig, EdgesEstimator),
    "soft_edges": (SoftEdgesConfig, SoftEdgesEstimator),
    "face": (FaceConfig, FaceEstimator),
}


def check_kind(setting: str, kind: str) -> None:
    """Raises UserError unless `kind` is one of STRUCTURES, or two or three different ones, joined by +."""
    parts = kinds_of(kind)
    if unknown := [part for part in parts if part not in STRUCTURES]:
        several = f", or several joined by {JOIN}" if len(parts) > 1 else ""
        raise UserError(f"{setting}={kind}: {unknown[0]!r} is not one of {', '.join(STRUCTURES)}{several}")
    if len(set(parts)) < len(parts):
        raise UserError(f"{setting}={kind} names a kind twice: name each once")
    if len(parts) > MAX_PLANES:
        raise UserError(f"{setting}={kind} has {len(parts)} kinds, and a picture takes {MAX_PLANES}: leave some out")


def structure_class(kind: str) -> type:
    """Returns the dataclass of the settings of a single kind. Raises UserError for an unknown kind."""
    return _known(kind)[0]


def structure_config(kind: str, settings: Mapping[str, Any]) -> Any:
    """Builds the config of a kind of structure from plain settings, as in a manifest. Raises UserError.

    That of several kinds is a dict with the config of each.
    """
    if JOIN in kind:
        check_kind("structure", kind)
        return {part: structure_config(part, settings.get(part, {})) for part in kinds_of(kind)}
    config = _known(kind)[0]
    names = [field.name for field in fields(config)]
    unknown = sorted(settings.keys() - set(names))
    if unknown:
        raise UserError(f"structure={kind} has no setting {unknown[0]}; its settings are {', '.join(names)}")
    return config(**settings)


def build_structure(
    kind: str, config: Any, device: str | torch.device = "cpu", recorded: bool = False
) -> StructureEstimator:
    """Builds the estimator of a kind; `config` is as of `structure_config`. Raises UserError for an unknown kind or a
    failure.

    `recorded`: a file names it, not the user, see `frozen.plain`.
    """
    if JOIN in kind:
        check_kind("structure", kind)
        return CombinedEstimator({part: _known(part)[1](config[part], device, recorded) for part in kinds_of(kind)})
    return _known(kind)[1](config, device, recorded)


def kinds_in(estimator: StructureEstimator) -> tuple[str, ...]:
    """Returns the kind of each plane of an estimator."""
    if isinstance(estimator, CombinedEstimator):
        return tuple(estimator.parts)
    return tuple(kind for kind, (_, build) in STRUCTURES.items() if type(estimator) is build)


def subject_of(kind: str) -> str | None:
    """Returns the subject of the estimators of a kind, see `StructureEstimator`; of several, the first one."""
    subjects = [getattr(STRUCTURES[part][1], "subject", None) for part in kinds_of(kind) if part in STRUCTURES]
    return next(filter(None, subjects), None)


def _known(kind: str) -> tuple[type, Callable[[Any, str | torch.device, bool], StructureEstimator]]:
    if kind not in STRUCTURES:
        raise UserError(f"there is no structure {kind!r}; choose from {', '.join(STRUCTURES)}")
    return STRUCTURES[kind]
