"""Eq. 8 of the paper, written out, and what it costs."""

import pytest
import torch
from torch import Tensor

from gen1_train.diffusion.guidance import GuidanceConfig, guided

Z = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Network:
    """Stands for the UNet: another function for each of (content, temporal); counts how much of z it was given."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, bool]] = []

    def mu(self, z: Tensor, content: bool, temporal: bool) -> Tensor:
        if temporal:
            z = z + 0.3 * z.roll(1, dims=1)
        return torch.sin(z * (2 if content else 3)) + (0.5 if content else -0.2)

    def __call__(self, z: Tensor, with_content: list[bool], temporal: bool) -> Tensor:
        assert len(z) == len(Z) * len(with_content)
        self.asked += [(flag, temporal) for flag in with_content]
        return torch.cat([self.mu(part, flag, temporal) for part, flag in zip(z.split(len(Z)), with_content)])


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0, 7.5])
@pytest.mark.parametrize("omega_t", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_it_is_equation_8(omega: float, omega_t: float) -> None:
    mu = Network().mu
    empty, full = mu(Z, False, True), mu(Z, True, True)
    frames = mu(Z, False, False)
    expected = frames + omega_t * (empty - frames) + omega * (full - empty)
    torch.testing.assert_close(guided(Network(), Z, GuidanceConfig(omega, omega_t)), expected, rtol=1e-12, atol=1e-12)


CONTENT, EMPTY, FRAMES = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
    ("omega", "omega_t", "passes"),
    [
        (1, 1, [CONTENT]),
        (7.5, 1, [CONTENT, EMPTY]),
        (0, 1, [EMPTY]),
        (7.5, 1.5, [CONTENT, EMPTY, FRAMES]),
        (7.5, 0.5, [CONTENT, EMPTY, FRAMES]),
        (1.5, 1.5, [CONTENT, FRAMES]),
        (0, 0, [FRAMES]),
    ],
)
def test_terms_of_weight_zero_cost_nothing(omega: float, omega_t: float, passes: list[tuple[bool, bool]]) -> None:
    network = Network()
    guided(network, Z, GuidanceConfig(omega, omega_t))
    assert network.asked == passes


def test_one_pass_is_the_network_itself_to_the_bit() -> None:
    assert torch.equal(guided(Network(), Z, GuidanceConfig(1, 1)), Network().mu(Z, True, True))
    assert torch.equal(guided(Network(), Z, GuidanceConfig(0, 0)), Network().mu(Z, False, False))
