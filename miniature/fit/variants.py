"""The two miniatures: the small one of the demo and the tests, and the large one, which is made to be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from miniature import WEIGHTS
from miniature.data import Pictures
from miniature.tiny import ClipSize
from miniature.world.scene import RICH


@dataclass(frozen=True)
class Variant:
    """The world that the estimators are fitted on, their sizes, and how long they are fitted."""

    pictures: Pictures
    folder: Path  # of the weights
    steps: Mapping[str, int]  # of each fit
    autoencoder: tuple[int, ...] = (8, 16, 32, 64)  # channels at each resolution
    crop: int = 64  # side of the squares that the autoencoder is fitted on
    bf16: bool = False  # fit the autoencoder in bfloat16: half the time on CPUs that have units for it
    depth_size: int = 64  # side of the pictures that the depth network's positions are for
    clip: ClipSize = field(default_factory=ClipSize)


SMALL = Variant(Pictures(), WEIGHTS, {"autoencoder": 5000, "depth": 1800, "clip": 1100})
LARGE = Variant(
    Pictures(RICH, height=128, width=224, supersample=2),
    WEIGHTS / "large",
    {"autoencoder": 20_000, "depth": 2500, "clip": 1500},
    autoencoder=(16, 32, 64, 128),
    crop=96,
    bf16=True,
    depth_size=128,
    clip=ClipSize(image=96, embedding=96),
)
VARIANTS = {"small": SMALL, "large": LARGE}
