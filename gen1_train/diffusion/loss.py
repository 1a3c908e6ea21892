"""The training loss: the squared error of what the network predicts, with a weight for the timestep.

The paper trains v and does not give a weighting; the plain mean, the default, is ours. In terms of x0, it weights a
timestep by 1 / sigma_t^2, which is the signal-to-noise ratio (SNR = alpha_t^2 / sigma_t^2) plus 1 (Salimans & Ho 2022).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gen1_train.errors import check_choice, check_positive

WEIGHTINGS = ("none", "min_snr")


@dataclass
class LossConfig:
    weighting: str = (
        "none"  # of timesteps: none, or min_snr, at most the weight that min_snr_gamma gives an error of x0
    )
    min_snr_gamma: float = 5.0  # Hang et al. 2023

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_choice("diffusion.loss.weighting", self.weighting, WEIGHTINGS)
        check_positive(diffusion__loss__min_snr_gamma=self.min_snr_gamma)

    def weights(self, form: str, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the weight of a prediction in a form (prediction.FORMS): alpha and sigma (...) -> (...).

        In terms of x0, min_snr is min(SNR, gamma) whatever the form (Hang et al. 2023).
        """
        if self.weighting == "none":
            return torch.ones_like(alpha)
        snr, gamma = (alpha / sigma) ** 2, self.min_snr_gamma
        if form == "eps":
            return (gamma / snr).clamp(max=1)
        return snr.clamp(max=gamma) / (snr + 1 if form == "v" else 1)


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample: (b, ...) and (b, ...) -> (b,), in float32 for inputs of any dtype."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
