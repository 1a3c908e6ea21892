"""Guidance with two scales: omega for the content, omega_t for consistency over time (paper Eq. 8).

    mu~ = mu_pi(z, 0) + omega_t [mu(z, 0) - mu_pi(z, 0)] + omega [mu(z, c) - mu(z, 0)]

mu is the video model, mu_pi the same weights with the temporal layers off, and 0 stands for no content. The structure
is an input of all terms.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gen1_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SCALE = 100


@dataclass
class GuidanceConfig:
    omega: float = 7.5  # content: > 1 follows the prompt harder; the paper gives no default, ours
    omega_t: float = 1.0  # time: 1 is the video model, < 1 flickers like hand-drawn, > 1 is smoother
    rescale: float = 0.0  # share to which the contrast that a high omega adds is taken back, 0 to 1; ours

    def check(self) -> None:
        """Raises UserError for a scale that is out of its range."""
        for name, value in vars(self).items():
            most = 1 if name == "rescale" else MAX_SCALE
            if not 0 <= value <= most:
                raise UserError(f"{name}={value} is out of range: give 0 to {most}")


@dataclass(frozen=True)
class Term:
    """One pass through the network, and its weight in the sum."""

    weight: float
    content: bool  # false: no content (or the negative prompt's)
    temporal: bool  # false: each frame alone, mu_pi


def terms(config: GuidanceConfig, temporal: bool = True) -> list[Term]:
    """Returns the terms of Eq. 8, with equal passes combined and terms of weight zero left out.

    The weights sum to one. omega = omega_t = 1 leaves one pass, omega_t = 1 leaves two. With temporal=False all passes
    are mu_pi, each frame alone, and omega_t has no effect.
    """
    if temporal:
        weights = {
            (True, True): config.omega,
            (False, True): config.omega_t - config.omega,
            (False, False): 1 - config.omega_t,
        }
    else:
        weights = {(True, False): config.omega, (False, False): 1 - config.omega}
    return [
        Term(weight=weight, content=content, temporal=temporal)
        for (content, temporal), weight in weights.items()
        if weight
    ]


def rescaled(guided: "Tensor", positive: "Tensor", share: float) -> "Tensor":
    """Returns a guided prediction (k, ...) with the deviation of the one for the content, mu(z, c), to a share.

    Lin et al. (2023, Eq. 15 and 16), who do so for images; here the deviation is that of a whole video. Ours.
    """
    wanted, found = (prediction.flatten(1).std(1) for prediction in (positive, guided))
    factor = share * wanted / found + (1 - share)
    return guided * factor.view(-1, *[1] * (guided.ndim - 1))
