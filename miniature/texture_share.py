"""The share of a texture that a solid shows, independent of its color: 0 if plain, 1 as the renderer paints it (ours).

The edit's brightness over the solid is projected onto the line between two pictures of the solid, plain and textured:
above one half, the edit is closer to the textured one. This needs a texture whose position on the solid is known, such
as `capped`. The miniature's autoencoder blurs textures heavily (8 pixels per latent), and no edit can be sharper than
its output. Therefore both reference pictures pass through the autoencoder as well.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_pixels, to_signed
from miniature import WEIGHTS
from miniature.cases import Case, render_case


def brightness(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3), mask (n, h, w) of p pixels -> (p,): brightness relative to its mean, minus 1."""
    grey = frames[mask].mean(-1)
    return grey / max(grey.mean(), 1.0) - 1


def texture_share(edited: np.ndarray, plain: np.ndarray, textured: np.ndarray) -> float:
    """Brightness (p,) of a solid in the edit, plain and textured -> 0 if equal to plain, 1 if to textured; linear."""
    line = textured - plain
    return float((edited - plain) @ line / max(line @ line, 1e-6))


def reference_brightness(case: Case, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of the wanted solid within the mask (n, h, w), plain and textured, after the autoencoder."""
    height, width = mask.shape[1:]
    plain, textured = (
        brightness(through_autoencoder(render_case(scene, height, width, supersample=2).frames), mask)
        for scene in (case.repainted(case.target, "plain"), case.wanted())
    )
    return plain, textured


@cache
def _autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))


def through_autoencoder(frames: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3) encoded and decoded by the miniature's autoencoder: the best that an edit can reach."""
    network = _autoencoder()
    mean, _ = network.encode_moments(to_signed(torch.from_numpy(frames))).chunk(2, dim=-3)
    return to_pixels(network.decode(mean * network.scale)).numpy()
