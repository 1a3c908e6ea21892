"""How a manifest records the structure levels (t_s) whose latents the samples of a set hold.

The entry of the autoencoder has `"levels": {"highest": 7, "degradation": "1: blur …"}` if they are those of
t_s = 0..7. Without it, they are those of t_s = 0 only.
"""

from collections.abc import Mapping
from typing import Any

from gen1_train.diffusion.structure import DEGRADATION

LEVELS = "levels"


def with_levels(autoencoder: Mapping[str, Any], highest: int) -> dict[str, Any]:
    """Returns a manifest's entry of the autoencoder for samples that hold the latents of t_s = 0..highest."""
    entry = {name: value for name, value in autoencoder.items() if name != LEVELS}
    return {**entry, LEVELS: {"highest": highest, "degradation": DEGRADATION}} if highest else entry


def stored_level(autoencoder: Mapping[str, Any]) -> int:
    """Returns the highest t_s up to which a manifest's samples hold latents that training can read.

    It is 0 if they hold only those of t_s = 0, or if the structure was degraded in another way than `degrade` does now.
    """
    levels = autoencoder.get(LEVELS) or {}
    return levels["highest"] if levels.get("degradation") == DEGRADATION else 0
