"""The noise schedule: variance preserving with T steps, as in Stable Diffusion 1.x (ours)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gen1_train.errors import UserError, check_positive, check_size


@dataclass
class NoiseConfig:
    steps: int = 1000  # T
    beta_start: float = 0.00085  # scaled-linear, SD 1.x
    beta_end: float = 0.012

    def check(self) -> None:
        """Raises UserError for a schedule that adds no noise, or more than there can be."""
        check_positive(diffusion__noise__steps=self.steps)
        check_size(diffusion__noise__steps=[self.steps])
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"diffusion.noise.beta_start={self.beta_start}, beta_end={self.beta_end}: give 0 < beta_start <= "
                "beta_end < 1"
            )


class NoiseSchedule:
    """alpha_t and sigma_t with alpha_t^2 + sigma_t^2 = 1: z_t = alpha_t x + sigma_t eps."""

    def __init__(self, config: NoiseConfig, device: str | torch.device = "cpu") -> None:
        # scaled-linear: linear in the square root of beta; float64 because the product has a thousand factors
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps, dtype=torch.float64) ** 2
        alphas_squared = (1 - betas).cumprod(0)
        self.steps = config.steps
        self.alphas = alphas_squared.sqrt().float().to(device)  # (T,)
        self.sigmas = (1 - alphas_squared).sqrt().float().to(device)  # (T,)

    @property
    def betas(self) -> list[float]:
        """The noise that each step adds: alpha_t^2 is the product of 1 - beta up to t."""
        squared = self.alphas.double().cpu() ** 2
        return (1 - squared / torch.cat([squared.new_ones(1), squared[:-1]])).tolist()

    def at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (alpha_t, sigma_t) for timesteps (b,), shaped to broadcast against `like` (b, ...)."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.alphas[timesteps].view(shape).to(like.dtype), self.sigmas[timesteps].view(shape).to(like.dtype)

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns z_t for clean latents x (b, ...), noise of the same shape and timesteps (b,)."""
        alpha, sigma = self.at(timesteps, x)
        return alpha * x + sigma * noise
