"""The noise: variance preserving with T steps, by default as in Stable Diffusion 1.x (ours).

A checkpoint records all of it, and edits, exports and later stages follow the record.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gen1_train.diffusion.prediction import FORMS
from gen1_train.errors import UserError, check_choice, check_positive, check_share, check_size
from gen1_train.keyed import normal

NO_SIGNAL = 2.0**-24  # alpha^2 in place of 0 where a logarithm of it is taken, as in diffusers


@dataclass
class NoiseConfig:
    steps: int = 1000  # T
    beta_start: float = 0.00085  # scaled-linear, SD 1.x
    beta_end: float = 0.012
    zero_terminal_snr: bool = False  # rescaled so that the last step has no signal (Lin et al. 2023, Algorithm 1)
    shared: float = 0.0  # share of the noise's variance that all frames of a clip have in common (Ge et al. 2023)
    offset: float = (
        0.0  # in training, deviation of noise added to whole channels of a clip, so that brightness is learned
    )
    prediction: str = "v"  # what the network predicts: v (the paper's), eps (Stable Diffusion 1.x), or x0

    def check(self) -> None:
        """Raises UserError for a schedule that adds no noise, or more than there can be."""
        check_choice("diffusion.noise.prediction", self.prediction, FORMS)
        check_share(diffusion__noise__shared=self.shared, diffusion__noise__offset=self.offset)
        if self.prediction == "eps" and self.zero_terminal_snr:
            raise UserError(
                "diffusion.noise.prediction=eps with zero_terminal_snr=true: the noise says nothing about the video in "
                "a step that is nothing but noise; give prediction=v or x0"
            )
        check_positive(diffusion__noise__steps=self.steps)
        check_size(diffusion__noise__steps=[self.steps])
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"diffusion.noise.beta_start={self.beta_start}, beta_end={self.beta_end}: give 0 < beta_start <= "
                "beta_end < 1"
            )


def without_terminal_signal(alphas: Tensor) -> Tensor:
    """Shifts and scales alpha_t (T,) to 0 at the last step, and keeps the first one (Lin et al. 2023, Algorithm 1)."""
    return (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])


class NoiseSchedule:
    """alpha_t and sigma_t with alpha_t^2 + sigma_t^2 = 1: z_t = alpha_t x + sigma_t eps."""

    prediction: str = "v"  # what the network predicts
    shared: float = 0.0  # share of the noise's variance that frames have in common

    def __init__(self, config: NoiseConfig, device: str | torch.device = "cpu") -> None:
        # scaled-linear: linear in the square root of beta; float64 because the product has a thousand factors
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps, dtype=torch.float64) ** 2
        alphas_squared = (1 - betas).cumprod(0)
        if config.zero_terminal_snr:
            alphas_squared = without_terminal_signal(alphas_squared.sqrt()) ** 2
        self.steps = config.steps
        self.prediction, self.shared = config.prediction, config.shared
        self.alphas = alphas_squared.sqrt().float().to(device)  # (T,)
        self.sigmas = (1 - alphas_squared).sqrt().float().to(device)  # (T,)

    @property
    def betas(self) -> list[float]:
        """The noise that each step adds: alpha_t^2 is the product of 1 - beta up to t. It is NO_SIGNAL instead of 0."""
        squared = (self.alphas.double().cpu() ** 2).clamp(min=NO_SIGNAL)
        return (1 - squared / torch.cat([squared.new_ones(1), squared[:-1]])).tolist()

    def at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (alpha_t, sigma_t) for timesteps (b,), shaped to broadcast against `like` (b, ...)."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.alphas[timesteps].view(shape).to(like.dtype), self.sigmas[timesteps].view(shape).to(like.dtype)

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns z_t for clean latents x (b, ...), noise of the same shape and timesteps (b,)."""
        alpha, sigma = self.at(timesteps, x)
        return alpha * x + sigma * noise


def with_common_noise(noise: Tensor, share: float, *key: int | str) -> Tensor:
    """Mixes independent noise (n, ...) of frames with noise of a key that they have in common, at the same variance.

    `share`: of the variance that is in common. The mixed noise model of Ge et al. (2023) has a^2 / (1 + a^2).
    """
    if not share:
        return noise
    return (1 - share) ** 0.5 * noise + share**0.5 * normal(tuple(noise.shape[1:]), *key)
