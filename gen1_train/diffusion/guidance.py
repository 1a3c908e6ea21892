"""Guidance with two dials: omega for the content, omega_t for consistency over time (paper Eq. 8)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# predict(z, with_content, temporal) -> prediction; z may hold the batch several times over
Predict = Callable[[Tensor, list[bool], bool], Tensor]


@dataclass
class GuidanceConfig:
    omega: float = 7.5  # content: > 1 follows the prompt harder; the paper gives no default, ours
    omega_t: float = 1.0  # time: 1 is the video model, < 1 flickers like hand-drawn, > 1 is smoother


def guided(predict: Predict, z: Tensor, config: GuidanceConfig) -> Tensor:
    """mu~ = mu_pi(z, 0) + omega_t [mu(z, 0) - mu_pi(z, 0)] + omega [mu(z, c) - mu(z, 0)]; the structure is in all.

    mu is the video model, mu_pi the same weights with the temporal layers off, 0 no content. `predict` runs the network
    on z (b, n, c, h, w), repeated for each entry of its list of with-content flags, and returns as many predictions.
    Terms of weight zero are not computed: omega = omega_t = 1 costs one pass, omega_t = 1 two.
    """
    weight_conditional = config.omega
    weight_unconditional = config.omega_t - config.omega
    weight_frames = 1 - config.omega_t
    terms = []
    video = [flag for flag, weight in ((True, weight_conditional), (False, weight_unconditional)) if weight]
    if video:
        predictions = predict(torch.cat([z] * len(video)), video, True).chunk(len(video))
        weights = [weight_conditional if flag else weight_unconditional for flag in video]
        terms += [weight * prediction for weight, prediction in zip(weights, predictions)]
    if weight_frames:
        terms.append(weight_frames * predict(z, [False], False))
    return torch.stack(terms).sum(0)
