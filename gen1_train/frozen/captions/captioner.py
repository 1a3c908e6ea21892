"""The choice of a network that captions frames (ours: the paper does not say where its texts come from).

A made caption is the text of a stranger's model about one frame, without a prompt. Decoding is deterministic: equal
frames have equal captions in every run. No row of a batch sees another, so only the rounding of sums depends on it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from gen1_train.errors import UserError
from gen1_train.frozen.captions.blip import BlipCaptioner, BlipConfig
from gen1_train.frozen.captions.coca import CocaCaptioner, CocaConfig

NONE = "none"
LONGEST = 400  # characters of a made caption; CLIP reads about 300; ours


class Captioner(Protocol):
    """Says in a few words what a frame shows. It has no state."""

    network: nn.Module

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that affects a caption: weights, vocabulary, preprocessing, limits."""

    @property
    def architecture(self) -> str:
        """The sha256 of the network's settings that its weights do not show."""

    def __call__(self, frames: np.ndarray) -> list[str]:
        """uint8 frames (k, h, w, 3) -> k texts, as the network spells them."""


# kind -> (settings class, captioner class); a captioner imports its libraries only when it is built
CAPTIONERS: dict[str, tuple[type, Callable[[Any, str | torch.device], Captioner]]] = {
    "coca": (CocaConfig, CocaCaptioner),
    "blip": (BlipConfig, BlipCaptioner),
}


def build_captioner(kind: str, config: Any, device: str | torch.device = "cpu") -> Captioner:
    """Builds the captioner of a kind; `config` is of that kind. Raises UserError for a network that cannot be used."""
    captioner = CAPTIONERS[kind][1](config, device)
    if not all(weights.isfinite().all() for weights in captioner.network.parameters()):
        raise UserError(f"recipe.caption={kind}: {config} has weights that are not finite: give other weights")
    return captioner


def clean_caption(text: str) -> str | None:
    """Returns a network's text as a caption: printable, white space collapsed as in given ones; None if it is blank."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:LONGEST].rstrip() or None
