"""Which texture a solid shows, whatever its colour and wherever the pattern begins (ours).

A picture of stripes tells nothing about where on the solid they begin, and nothing in the input does. So an edit is not
compared pixel by pixel with the renderer, but by what does not depend on the pattern's place: how strong its edges are,
and which way they go. The autoencoder of the miniature blurs textures of this size much (8 pixels to a latent), and no
edit can show more than it: what the edit is compared with has passed through it, too.
Frames that have not (the renderer's own) are therefore not to be measured so: their edges are too strong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch

from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig, to_pixels, to_signed
from miniature.cases import Case, render_case
from miniature.solids import PATTERNS

DIRECTIONS = 12  # of edges, evenly over half a turn
SCALES = (0.6, 1.4)  # pixels: standard deviations of the Gaussian before the gradient
STRENGTH = 1.0  # weight of the edges' strength beside their directions


@dataclass(frozen=True)
class Descriptor:
    """Of a solid's pixels over a clip."""

    directions: np.ndarray  # (scales, DIRECTIONS): share of each direction in the edges' strength
    strength: np.ndarray  # (scales,): log of the mean gradient, in shares of the mean brightness a pixel

    def distance(self, other: Descriptor) -> float:
        """Hellinger's of the directions, and the difference of strengths."""
        roots = np.sqrt(self.directions) - np.sqrt(other.directions)
        return float((roots**2).sum() / 2 + STRENGTH * ((self.strength - other.strength) ** 2).sum())


def describe(frames: np.ndarray, mask: np.ndarray) -> Descriptor:
    """uint8 frames (n, h, w, 3), the solid's pixels without its border (n, h, w) -> their descriptor.

    Outside the solid its mean brightness is filled in before blurring, so that the outline is no edge.
    """
    grey = frames.mean(-1).astype(np.float32)
    brightness = max(float(grey[mask].mean()), 1.0)
    share = mask.astype(np.float32)
    directions, strength = [], []
    for scale in SCALES:
        histogram, total = np.zeros(DIRECTIONS), 0.0
        for picture, inside, weight in zip(grey, mask, share, strict=True):
            known = cv2.GaussianBlur(weight, (0, 0), scale)
            smooth = cv2.GaussianBlur((picture - brightness) * weight, (0, 0), scale) / np.maximum(known, 1e-3)
            dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
            core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            size, angle = np.hypot(dx, dy)[core], np.arctan2(dy, dx)[core] % np.pi
            bins = (angle / np.pi * DIRECTIONS).astype(int) % DIRECTIONS
            histogram += np.bincount(bins, size, DIRECTIONS)
            total += float(size.sum())
        directions.append(histogram / max(total, 1e-6))
        strength.append(np.log(total / max(int(mask.sum()), 1) / brightness + 1e-3))
    return Descriptor(np.stack(directions), np.array(strength))


def nearest(shown: Descriptor, known: Mapping[str, Descriptor]) -> str:
    """The name whose descriptor is nearest."""
    return min(known, key=lambda name: shown.distance(known[name]))


def references(case: Case, mask: np.ndarray) -> dict[str, Descriptor]:
    """What renderer and autoencoder show within the mask (n, h, w) for each texture, in the wanted colour."""
    height, width = mask.shape[1:]
    shown = {}
    for name in PATTERNS:
        frames = render_case(case.dressed(case.target, name), height, width, supersample=2).frames
        shown[name] = describe(through_autoencoder(frames), mask)
    return shown


@cache
def _autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(str(Path(__file__).parent / "weights" / "autoencoder")))


def through_autoencoder(frames: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3) as the miniature's autoencoder gives them back: the best that any edit can be."""
    network = _autoencoder()
    mean, _ = network.encode_moments(to_signed(torch.from_numpy(frames))).chunk(2, dim=-3)
    return to_pixels(network.decode(mean * network.scale)).numpy()
