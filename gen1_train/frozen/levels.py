"""How a manifest records the structure levels (t_s) whose latents the samples of a set hold.

The entry of the autoencoder has `"levels": {"highest": 7, "degradation": "1: blur …"}` if they are those of t_s = 0..7,
degraded by that procedure of `diffusion.structure`. The highest is 0 if they are those of t_s = 0 only, and training is
to degrade by that procedure. Without the entry, they are those of t_s = 0 only, and training degrades in pixels.
"""

from collections.abc import Mapping
from typing import Any

from gen1_train.diffusion.structure import AUTO, DEGRADATIONS, PIXELS

LEVELS = "levels"


def with_levels(autoencoder: Mapping[str, Any], highest: int, degradation: str = PIXELS) -> dict[str, Any]:
    """Returns a manifest's entry of the autoencoder for samples that hold the latents of t_s = 0..highest.

    In pixels, t_s = 0 alone is recorded as in older sets: not at all.
    """
    entry = {name: value for name, value in autoencoder.items() if name != LEVELS}
    if not highest and degradation == PIXELS:
        return entry
    return {**entry, LEVELS: {"highest": highest, "degradation": DEGRADATIONS[degradation]}}


def set_degradation(autoencoder: Mapping[str, Any]) -> str | None:
    """Returns how a set degrades; None if it does not record it, or if it is a procedure of another version."""
    recorded = (autoencoder.get(LEVELS) or {}).get("degradation")
    return next((name for name, text in DEGRADATIONS.items() if text == recorded), None)


def stored_level(autoencoder: Mapping[str, Any], degradation: str = AUTO) -> int:
    """Returns the highest t_s up to which a manifest's samples hold latents that training can read.

    It is 0 if they hold only those of t_s = 0, or if the structure was degraded in another way than `degradation`, or,
    with AUTO, in another way than this version can.
    """
    known = set_degradation(autoencoder)
    return autoencoder[LEVELS]["highest"] if known is not None and degradation in (AUTO, known) else 0
