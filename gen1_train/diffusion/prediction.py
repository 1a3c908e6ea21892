"""Conversions between the forms of a prediction: x0, eps and v.

With z = alpha x + sigma eps and v = alpha eps - sigma x (Salimans & Ho 2022), z and any one of x0, eps and v determine
the others. The paper trains v because it keeps the colors of video samples consistent.
"""

from torch import Tensor


def v_from(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x."""
    return alpha * noise - sigma * x


def x_from_v(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = alpha z - sigma v."""
    return alpha * z - sigma * v


def noise_from_v(z: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps = sigma z + alpha v."""
    return sigma * z + alpha * v


def v_from_x(z: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = (alpha z - x) / sigma."""
    return (alpha * z - x) / sigma
