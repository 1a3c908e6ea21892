"""How much of a texture a solid shows, whatever its colour: 0 as a plain one, 1 as the renderer paints it (ours).

The edit's brightness over the solid is projected on the line between two pictures of it, plain and textured: above one
half it is nearer to the textured one. This needs a texture whose place on the solid is known, as that of `capped` is.
The autoencoder of the miniature blurs textures much (8 pixels to a latent), and no edit can show more than it: what an
edit is compared with has passed through it, too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig, to_pixels, to_signed
from miniature.cases import Case, render_case


def brightness(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3), mask (n, h, w) of p pixels -> (p,): their brightness in shares of its mean, less 1."""
    grey = frames[mask].mean(-1)
    return grey / max(grey.mean(), 1.0) - 1


def texture_share(shown: np.ndarray, plain: np.ndarray, textured: np.ndarray) -> float:
    """Brightness (p,) of a solid, and of the same plain and textured -> 0 for the former, 1 for the latter; linear."""
    line = textured - plain
    return float((shown - plain) @ line / max(line @ line, 1e-6))


def references(case: Case, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The brightness within the mask (n, h, w) of the wanted solid, plain and textured, as the autoencoder shows it."""
    height, width = mask.shape[1:]
    plain, textured = (
        brightness(through_autoencoder(render_case(scene, height, width, supersample=2).frames), mask)
        for scene in (case.dressed(case.target, "plain"), case.wanted())
    )
    return plain, textured


@cache
def _autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(Path(__file__).parent / "weights" / "autoencoder")))


def through_autoencoder(frames: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3) as the miniature's autoencoder gives them back: the best that any edit can be."""
    network = _autoencoder()
    mean, _ = network.encode_moments(to_signed(torch.from_numpy(frames))).chunk(2, dim=-3)
    return to_pixels(network.decode(mean * network.scale)).numpy()
