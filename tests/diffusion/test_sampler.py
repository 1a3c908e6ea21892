"""DDIM: exact where the answer is known, and step for step that of diffusers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gen1_train.diffusion.prediction import v_from
from gen1_train.diffusion.sampler import ddim, timesteps
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule

SCHEDULE = NoiseSchedule(NoiseConfig())


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 333, 999, 1000])
def test_timesteps_start_in_noise_and_never_repeat(steps: int) -> None:
    """A repeated timestep is a pass through the network that changes nothing."""
    times = timesteps(SCHEDULE, steps)
    assert len(times) == steps and times[0] == 999
    assert all(a > b for a, b in pairwise(times)) and times[-1] >= 0
    gaps = {a - b for a, b in pairwise(times)}
    assert not gaps or max(gaps) - min(gaps) <= 1  # evenly spaced


def test_the_last_timestep_is_as_far_from_the_picture_as_the_others_are_from_each_other() -> None:
    times = timesteps(SCHEDULE, 50)
    assert 18 <= times[-1] <= 21


def gaussian(mean: float, deviation: float) -> Any:
    """The perfect denoiser of N(mean, deviation^2): the posterior means of x and eps, as v."""

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.at(times, z)
        variance = alpha**2 * deviation**2 + sigma**2
        x = mean + alpha * deviation**2 / variance * (z - alpha * mean)
        noise = sigma / variance * (z - alpha * mean)
        return v_from(x, noise, alpha, sigma)

    return denoise


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 2.0)])
def test_a_perfect_denoiser_gives_the_distribution_back(mean: float, deviation: float) -> None:
    """Sample by sample: DDIM follows the flow from the noised Gaussian at T - 1 to the Gaussian, which is affine.

    Pure noise is not quite the noised Gaussian (SD's schedule keeps 7 % of the picture), so a mean of -2 arrives as
    -1.7; that is the schedule's, not the sampler's.
    """
    torch.manual_seed(0)
    noise = torch.randn(1, 20_000, dtype=torch.float64)
    made = ddim(gaussian(mean, deviation), noise, SCHEDULE, steps=500)
    alpha, sigma = SCHEDULE.alphas[-1].double(), SCHEDULE.sigmas[-1].double()
    expected = mean + deviation * (noise - alpha * mean) / (alpha**2 * deviation**2 + sigma**2).sqrt()
    assert (made - expected).abs().mean() < 0.01 * deviation
    assert abs(made.std() / deviation - 1) < 0.02 and abs(made.mean() - mean) < 0.15 * deviation


def test_a_point_is_found_in_one_step() -> None:
    x = torch.randn(2, 3, 4)

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.at(times, z)
        return v_from(x, (z - alpha * x) / sigma, alpha, sigma)

    for steps in (1, 7):
        torch.testing.assert_close(ddim(denoise, torch.randn(2, 3, 4), SCHEDULE, steps), x, rtol=1e-4, atol=1e-4)


def test_steps_are_those_of_diffusers() -> None:
    torch.manual_seed(0)
    noise, weight = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        mixed = torch.einsum("bnchw,cd->bndhw", z, weight).tanh()
        return mixed * (1 + times.view(-1, 1, 1, 1, 1) / 1000)

    theirs = DDIMScheduler(
        1000,
        0.00085,
        0.012,
        "scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
    )
    times = timesteps(SCHEDULE, 7)
    theirs.set_timesteps(7)
    theirs.timesteps = torch.tensor(times)
    z = noise
    for i, t in enumerate(times):
        # diffusers takes the timestep before to be T // steps lower; ours are spaced by (T - 1) / steps
        theirs.config.num_train_timesteps, theirs.num_inference_steps = t - (times[i + 1] if i < 6 else -1), 1
        z = theirs.step(denoise(z, torch.full((2,), t)), t, z).prev_sample
    torch.testing.assert_close(ddim(denoise, noise, SCHEDULE, 7), z, rtol=1e-4, atol=1e-4)


def test_every_step_is_reported_and_the_network_called_once_each() -> None:
    calls, reported = [], []

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        assert times.shape == (3,) and times.dtype == torch.int64
        calls.append(times.tolist())
        return torch.zeros_like(z)

    ddim(denoise, torch.randn(3, 2), SCHEDULE, 5, reported.append)
    assert calls == [[t] * 3 for t in timesteps(SCHEDULE, 5)]
    assert reported == [1, 2, 3, 4, 5]
