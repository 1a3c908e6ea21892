"""Tests of sampling from the prior: exact for known distributions, with no more passes than the guidance needs."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gen1_train.diffusion.prior import CosineSchedule, best_of, guided_x, sample_embeddings

SCHEDULE = CosineSchedule(1000)


def test_the_schedule_equals_the_published_one() -> None:
    """Nichol & Dhariwal's alpha-bar up to a constant factor; variance preserving, with pure noise at the end."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    expected = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(SCHEDULE.alphas.double() ** 2, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(SCHEDULE.alphas**2 + SCHEDULE.sigmas**2, torch.ones(1000))
    assert SCHEDULE.alphas[-1].abs() < 1e-7 and SCHEDULE.alphas[0] > 0.999
    assert (SCHEDULE.alphas.diff() < 0).all()


def test_a_perfect_denoiser_of_a_gaussian_reproduces_mean_and_deviation() -> None:
    mean, deviation = torch.linspace(-2, 2, 8), torch.linspace(0.2, 1.5, 8)

    def predict(z: Tensor, timesteps: Tensor, with_text: list[bool]) -> Tensor:
        assert with_text == [True]
        alpha, sigma = SCHEDULE.at(timesteps, z)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (z - alpha * mean)

    noise = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    samples = sample_embeddings(predict, noise, SCHEDULE, steps=250, omega=1.0)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(samples.std(0), deviation, rtol=0.03, atol=0.01)


class CountingNetwork:
    """Predicts 3 with the text and 1 without, and counts the passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, z: Tensor, timesteps: Tensor, with_text: list[bool]) -> Tensor:
        self.passes += len(with_text)
        assert len(z) == len(timesteps) == 5 * len(with_text)
        return torch.cat([torch.full((5, 2), 3.0 if flag else 1.0) for flag in with_text])


def test_guidance_takes_no_unneeded_pass() -> None:
    z, timesteps = torch.zeros(5, 2), torch.zeros(5, dtype=torch.long)
    for omega, passes, expected in ((1.0, 1, 3.0), (0.0, 1, 1.0), (2.5, 2, 6.0)):
        predict = CountingNetwork()
        x = guided_x(predict, z, timesteps, omega)
        assert predict.passes == passes
        torch.testing.assert_close(x, torch.full((5, 2), expected))  # 1 + omega (3 - 1)


def test_sampling_calls_the_network_once_per_step_and_pass() -> None:
    predict = CountingNetwork()
    samples = sample_embeddings(predict, torch.randn(5, 2), SCHEDULE, steps=7, omega=1.0)
    assert predict.passes == 7
    torch.testing.assert_close(samples, torch.full((5, 2), 3.0), rtol=1e-4, atol=1e-4)


def test_the_candidate_closest_to_its_own_text_is_chosen_regardless_of_length() -> None:
    torch.manual_seed(0)
    texts, candidates = torch.randn(6, 16), torch.randn(6, 5, 16)
    best = torch.tensor([3, 0, 4, 1, 1, 2])
    candidates[torch.arange(6), best] = 0.01 * normalize(texts, dim=-1) + 0.001 * torch.randn(6, 16)
    assert torch.equal(best_of(candidates, texts), candidates[torch.arange(6), best])


def test_a_single_candidate_is_chosen() -> None:
    candidates = torch.randn(4, 1, 8)
    assert torch.equal(best_of(candidates, torch.randn(4, 8)), candidates[:, 0])
