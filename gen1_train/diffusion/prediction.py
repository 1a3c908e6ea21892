"""Conversions between the forms of a prediction: x0, eps and v.

With z = alpha x + sigma eps and v = alpha eps - sigma x (Salimans & Ho 2022), z and any one of x0, eps and v determine
the others. The paper trains v because it keeps the colors of video samples consistent.
"""

from torch import Tensor

FORMS = ("v", "eps", "x0")  # that a network may predict


def target(form: str, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Returns what a network that predicts one of FORMS learns, for clean latents x."""
    return {"v": lambda: v_from(x, noise, alpha, sigma), "eps": lambda: noise, "x0": lambda: x}[form]()


def as_v(form: str, z: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Converts a prediction in one of FORMS to v.

    It divides by alpha for eps, which says nothing about x0 where there is no signal, and by sigma for x0.
    """
    if form == "eps":
        return v_from_noise(z, prediction, alpha, sigma)
    return v_from_x(z, prediction, alpha, sigma) if form == "x0" else prediction


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


def v_from_noise(z: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = (eps - sigma z) / alpha."""
    return (noise - sigma * z) / alpha
