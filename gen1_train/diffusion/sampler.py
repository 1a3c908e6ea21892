"""DDIM (Song et al. 2021, Eq. 12 with eta = 0) over any denoiser in v form: deterministic given its first noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from gen1_train.diffusion.prediction import noise_from_v, x_from_v
from gen1_train.diffusion.schedule import NoiseSchedule


def timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """`steps` timesteps, T / steps apart, down from T - 1: always from pure noise, none twice for steps <= T."""
    return [schedule.steps - 1 - i * schedule.steps // steps for i in range(steps)]


def ddim(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    on_step: Callable[[int], object] = lambda done: None,
) -> Tensor:
    """Noise (b, ...) -> clean latents (b, ...) in `steps` calls of denoise(z, timesteps (b,)) -> v."""
    z = noise
    times = timesteps(schedule, steps)
    for i, t in enumerate(times):
        now = torch.full((len(z),), t, device=z.device)
        alpha, sigma = schedule.at(now, z)
        v = denoise(z, now)
        x, eps = x_from_v(z, v, alpha, sigma), noise_from_v(z, v, alpha, sigma)
        if i + 1 < len(times):
            alpha, sigma = schedule.at(torch.full_like(now, times[i + 1]), z)
            z = alpha * x + sigma * eps
        else:
            z = x
        on_step(i + 1)
    return z
