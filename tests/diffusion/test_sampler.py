"""DDIM: exact where the answer is known, and step for step that of diffusers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gen1_train.diffusion.prediction import v_from
from gen1_train.diffusion.sampler import SOLVERS, Sampler, ddim, dpm_solver, timesteps, unchanged
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


def flow(noise: Tensor, mean: float, deviation: float) -> Tensor:
    """Where the exact flow brings pure noise, which it takes for the noised Gaussian at T - 1."""
    alpha, sigma = SCHEDULE.alphas[-1].double(), SCHEDULE.sigmas[-1].double()
    return mean + deviation * (noise - alpha * mean) / (alpha**2 * deviation**2 + sigma**2).sqrt()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 2.0)])
@pytest.mark.parametrize(("sampler", "steps"), [(ddim, 500), (dpm_solver, 200)])
def test_a_perfect_denoiser_gives_the_distribution_back(
    sampler: Sampler, steps: int, mean: float, deviation: float
) -> None:
    """Sample by sample: a sampler follows the flow from the noised Gaussian at T - 1 to the Gaussian, which is affine.

    Pure noise is not quite the noised Gaussian (SD's schedule keeps 7 % of the picture), so a mean of -2 arrives as
    -1.7; that is the schedule's, not the sampler's.
    """
    torch.manual_seed(0)
    noise = torch.randn(1, 20_000, dtype=torch.float64)
    made = sampler(gaussian(mean, deviation), noise, SCHEDULE, timesteps(SCHEDULE, steps), unchanged)
    expected = flow(noise, mean, deviation)
    assert (made - expected).abs().mean() < 0.01 * deviation
    assert abs(made.std() / deviation - 1) < 0.02 and abs(made.mean() - mean) < 0.15 * deviation


def test_the_faster_solver_is_nearer_to_the_flow_in_as_many_steps() -> None:
    noise = torch.randn(1, 5_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = timesteps(SCHEDULE, 12)
    errors = [
        sum(
            float((sampler(gaussian(*shape), noise, SCHEDULE, times, unchanged) - flow(noise, *shape)).abs().mean())
            for shape in ((1.5, 0.5), (0.0, 1.0), (-2.0, 2.0))
        )
        for sampler in (ddim, dpm_solver)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("sampler", SOLVERS.values())
def test_a_point_is_found_in_one_step(sampler: Sampler) -> None:
    x = torch.randn(2, 3, 4)

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.at(times, z)
        return v_from(x, (z - alpha * x) / sigma, alpha, sigma)

    for steps in (1, 7):
        made = sampler(denoise, torch.randn(2, 3, 4), SCHEDULE, timesteps(SCHEDULE, steps), unchanged)
        torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-4)


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
    torch.testing.assert_close(ddim(denoise, noise, SCHEDULE, times), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SOLVERS.values())
def test_every_step_is_told_and_the_network_called_once_each(sampler: Sampler) -> None:
    calls: list[list[int]] = []
    told: list[int | None] = []

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        assert times.shape == (3,) and times.dtype == torch.int64
        calls.append(times.tolist())
        return torch.zeros_like(z)

    def after(z: Tensor, t: int | None) -> Tensor:
        told.append(t)
        return z

    times = timesteps(SCHEDULE, 5)
    sampler(denoise, torch.randn(3, 2), SCHEDULE, times, after)
    assert calls == [[t] * 3 for t in times] and told == [*times[1:], None]


@pytest.mark.parametrize("sampler", SOLVERS.values())
def test_what_is_put_back_after_each_step_stays(sampler: Sampler) -> None:
    """As a mask does: the last word is `after`'s."""
    made = sampler(lambda z, t: torch.ones_like(z), torch.randn(1, 4), SCHEDULE, timesteps(SCHEDULE, 3), keep_half)
    assert made[0, :2].tolist() == [7, 7] and made[0, 2] != 7


def keep_half(z: Tensor, t: int | None) -> Tensor:
    return torch.cat([torch.full_like(z[:, :2], 7), z[:, 2:]], dim=1)


def test_a_share_of_the_steps_is_their_end() -> None:
    times = timesteps(SCHEDULE, 10)
    assert timesteps(SCHEDULE, 10, 0.3) == times[-3:]
    assert timesteps(SCHEDULE, 10, 0.001) == times[-1:] and timesteps(SCHEDULE, 10, 1.0) == times
