"""The texture that a solid shows, and the share of it: 0 if plain, 1 as the renderer paints it (ours).

Textures are compared by their brightness, which does not depend on the solid's color. For the share, the edit's
brightness over the solid is projected onto the line between two pictures of the solid, plain and textured: above one
half, the edit is closer to the textured one. The position of a texture on its solid is known. The miniature's
autoencoder blurs textures (8 pixels per latent), and no edit can be sharper than its output. Therefore the reference
pictures pass through the autoencoder as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import torch

from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig, to_pixels, to_signed
from miniature import WEIGHTS
from miniature.cases import Case, render_case
from miniature.world.render import supersampling
from miniature.world.scene import PLAIN


def brightness(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3), mask (n, h, w) of p pixels -> (p,): brightness relative to its mean, minus 1."""
    grey = frames[mask].mean(-1)
    return grey / max(grey.mean(), 1.0) - 1


def texture_share(edited: np.ndarray, plain: np.ndarray, textured: np.ndarray) -> float:
    """Brightness (p,) of a solid in the edit, plain and textured -> 0 if equal to plain, 1 if to textured; linear."""
    line = textured - plain
    return float((edited - plain) @ line / max(line @ line, 1e-6))


def nearest_texture(edited: np.ndarray, textures: Mapping[str, np.ndarray]) -> str:
    """The name of the texture whose brightness (p,) is nearest to that of the edit."""
    return min(textures, key=lambda name: float(np.square(edited - textures[name]).sum()))


def reference_brightness(case: Case, mask: np.ndarray, textures: Iterable[str]) -> dict[str, np.ndarray]:
    """Brightness of the wanted solid within the mask (n, h, w) in each texture, after the autoencoder."""
    height, width = mask.shape[1:]
    found = {}
    for name in textures:
        frames = render_case(case.repainted(case.target, name), height, width, supersampling(height)).frames
        found[name] = brightness(through_autoencoder(frames, case.style), mask)
    return found


@cache
def _autoencoder(style: str) -> Autoencoder:
    folder = WEIGHTS if style == PLAIN else WEIGHTS / "large"
    return Autoencoder(AutoencoderConfig(str(folder / "autoencoder")))


def through_autoencoder(frames: np.ndarray, style: str = PLAIN) -> np.ndarray:
    """uint8 frames (n, h, w, 3) encoded and decoded by the autoencoder of a style: the best that an edit can reach."""
    network = _autoencoder(style)
    mean, _ = network.encode_moments(to_signed(torch.from_numpy(frames))).chunk(2, dim=-3)
    return to_pixels(network.decode(mean * network.scale)).numpy()
