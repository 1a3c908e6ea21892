"""The training loss (paper Eq. 4, in v form; the paper's weighting is the plain mean)."""

from torch import Tensor


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample: (b, ...) and (b, ...) -> (b,), in float32 whatever the inputs are."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
