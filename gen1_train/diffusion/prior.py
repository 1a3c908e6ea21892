"""Sampling from the prior: guidance by the text, then the best candidate by CLIP similarity (as in unCLIP, 2.2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from typing_extensions import override

from gen1_train.diffusion.prediction import v_from_x
from gen1_train.diffusion.sampler import ddim
from gen1_train.diffusion.sampler import timesteps as spaced_timesteps
from gen1_train.diffusion.schedule import NoiseSchedule
from gen1_train.errors import check_not_negative, check_positive

# predict(z, timesteps (b,), with_text) -> x0 of z's shape; z may hold the batch twice, `with_text` has a flag for each
Predict = Callable[[Tensor, Tensor, list[bool]], Tensor]


@dataclass
class PriorSamplingConfig:
    """All values are ours, except for unCLIP's 64 steps; unCLIP keeps the better of two candidates."""

    steps: int = 64  # of DDIM
    omega: float = 1.0  # guidance by the text: 1 takes one pass per step; more is closer to the text and less varied
    candidates: int = 4  # the one with the largest cosine to the text embedding is kept

    def check(self) -> None:
        """Raises UserError for a setting that is out of its range."""
        check_positive(sampling__candidates=self.candidates, sampling__steps=self.steps)
        check_not_negative(sampling__omega=self.omega)


class CosineSchedule(NoiseSchedule):
    """alpha_t^2 = cos^2(pi/2 (u + s) / (1 + s)), u = (t + 1) / T: the cosine schedule, which unCLIP uses for its prior.

    Nichol & Dhariwal (2021, Eq. 17) also divide by the value at u = 0, which is 0.9998.

    In float32 the last step is pure noise. Stable Diffusion's schedule keeps a trace of the image, which sampling does
    not have.
    """

    @override
    def __init__(self, steps: int, device: str | torch.device = "cpu", offset: float = 0.008) -> None:
        u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        angles = math.pi / 2 * (u + offset) / (1 + offset)
        self.steps = steps
        self.alphas = angles.cos().float().to(device)  # (T,)
        self.sigmas = angles.sin().float().to(device)  # (T,)


def guided_x(predict: Predict, z: Tensor, timesteps: Tensor, omega: float) -> Tensor:
    """x(z, 0) + omega [x(z, text) - x(z, 0)]. Terms of weight zero are not computed: omega = 1 costs one pass."""
    weights = {flag: weight for flag, weight in ((True, omega), (False, 1 - omega)) if weight}
    k = len(weights)
    parts = predict(torch.cat([z] * k), torch.cat([timesteps] * k), list(weights)).chunk(k)
    return torch.stack([weight * part for weight, part in zip(weights.values(), parts)]).sum(0)


def sample_embeddings(predict: Predict, noise: Tensor, schedule: NoiseSchedule, steps: int, omega: float) -> Tensor:
    """Samples image embeddings (b, d), in the network's scale, from noise (b, d) by DDIM."""

    def denoise(z: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = schedule.at(timesteps, z)
        return v_from_x(z, guided_x(predict, z, timesteps, omega), alpha, sigma)

    return ddim(denoise, noise, schedule, spaced_timesteps(schedule, steps))


def best_of(candidates: Tensor, texts: Tensor) -> Tensor:
    """Picks from each n candidates (b, n, d) the one that is closest to its text embedding (b, d): (b, d)."""
    closest = cosine_similarity(candidates, texts[:, None], dim=-1).argmax(1)
    return candidates[torch.arange(len(candidates), device=closest.device), closest]
