"""The training loss: the error of v, without a weight for the timestep.

The paper trains v and does not give a weighting; the plain mean is ours. In terms of x0, it weights a timestep by
1 / sigma_t^2, which is the signal-to-noise ratio plus 1 (Salimans & Ho 2022).
"""

from torch import Tensor


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample: (b, ...) and (b, ...) -> (b,), in float32 for inputs of any dtype."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
