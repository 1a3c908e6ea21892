"""Tests of the samplers: exact for known distributions, and DDIM equal to that of diffusers step by step."""

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
    """A repeated timestep would be a pass through the network without effect."""
    times = timesteps(SCHEDULE, steps)
    assert len(times) == steps and times[0] == 999
    assert all(a > b for a, b in pairwise(times)) and times[-1] >= 0
    gaps = {a - b for a, b in pairwise(times)}
    assert not gaps or max(gaps) - min(gaps) <= 1  # evenly spaced


def test_the_last_step_is_as_long_as_the_others() -> None:
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
    """The exact flow's result for pure noise, taken as the noised Gaussian at T - 1."""
    alpha, sigma = SCHEDULE.alphas[-1].double(), SCHEDULE.sigmas[-1].double()
    return mean + deviation * (noise - alpha * mean) / (alpha**2 * deviation**2 + sigma**2).sqrt()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 2.0)])
@pytest.mark.parametrize(("sampler", "steps"), [(ddim, 500), (dpm_solver, 200)])
def test_a_perfect_denoiser_reproduces_the_distribution(
    sampler: Sampler, steps: int, mean: float, deviation: float
) -> None:
    """Each sample follows the flow from the noised Gaussian at T - 1 to the Gaussian, which is affine.

    Pure noise is not quite the noised Gaussian (SD's schedule keeps 7 % of the image), so a mean of -2 comes out as
    -1.7. This is due to the schedule, not the sampler.
    """
    torch.manual_seed(0)
    noise = torch.randn(1, 20_000, dtype=torch.float64)
    samples = sampler(gaussian(mean, deviation), noise, SCHEDULE, timesteps(SCHEDULE, steps), unchanged)
    expected = flow(noise, mean, deviation)
    assert (samples - expected).abs().mean() < 0.01 * deviation
    assert abs(samples.std() / deviation - 1) < 0.02 and abs(samples.mean() - mean) < 0.15 * deviation


def test_dpm_solver_is_closer_to_the_flow_than_ddim_in_the_same_number_of_steps() -> None:
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
def test_a_single_point_is_reached_in_any_number_of_steps(sampler: Sampler) -> None:
    x = torch.randn(2, 3, 4)

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.at(times, z)
        return v_from(x, (z - alpha * x) / sigma, alpha, sigma)

    for steps in (1, 7):
        samples = sampler(denoise, torch.randn(2, 3, 4), SCHEDULE, timesteps(SCHEDULE, steps), unchanged)
        torch.testing.assert_close(samples, x, rtol=1e-4, atol=1e-4)


def test_ddim_steps_equal_those_of_diffusers() -> None:
    torch.manual_seed(0)
    noise, weight = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        mixed = torch.einsum("bnchw,cd->bndhw", z, weight).tanh()
        return mixed * (1 + times.view(-1, 1, 1, 1, 1) / 1000)

    reference = DDIMScheduler(
        1000,
        0.00085,
        0.012,
        "scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
    )
    times = timesteps(SCHEDULE, 7)
    reference.set_timesteps(7)
    reference.timesteps = torch.tensor(times)
    z = noise
    for i, t in enumerate(times):
        # diffusers assumes that the next timestep is T // steps lower; ours are spaced by (T - 1) / steps
        reference.config.num_train_timesteps = t - (times[i + 1] if i < 6 else -1)
        reference.num_inference_steps = 1
        z = reference.step(denoise(z, torch.full((2,), t)), t, z).prev_sample
    torch.testing.assert_close(ddim(denoise, noise, SCHEDULE, times), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SOLVERS.values())
def test_each_step_calls_the_network_and_the_hook_once(sampler: Sampler) -> None:
    calls: list[list[int]] = []
    hook_calls: list[int | None] = []

    def denoise(z: Tensor, times: Tensor) -> Tensor:
        assert times.shape == (3,) and times.dtype == torch.int64
        calls.append(times.tolist())
        return torch.zeros_like(z)

    def after_step(z: Tensor, t: int | None) -> Tensor:
        hook_calls.append(t)
        return z

    times = timesteps(SCHEDULE, 5)
    sampler(denoise, torch.randn(3, 2), SCHEDULE, times, after_step)
    assert calls == [[t] * 3 for t in times] and hook_calls == [*times[1:], None]


@pytest.mark.parametrize("sampler", SOLVERS.values())
def test_latents_that_the_hook_replaces_are_kept(sampler: Sampler) -> None:
    """Masked edits rely on this."""
    samples = sampler(
        lambda z, t: torch.ones_like(z), torch.randn(1, 4), SCHEDULE, timesteps(SCHEDULE, 3), replace_half
    )
    assert samples[0, :2].tolist() == [7, 7] and samples[0, 2] != 7


def replace_half(z: Tensor, t: int | None) -> Tensor:
    return torch.cat([torch.full_like(z[:, :2], 7), z[:, 2:]], dim=1)


def test_a_share_of_the_steps_keeps_the_last_ones() -> None:
    times = timesteps(SCHEDULE, 10)
    assert timesteps(SCHEDULE, 10, 0.3) == times[-3:]
    assert timesteps(SCHEDULE, 10, 0.001) == times[-1:] and timesteps(SCHEDULE, 10, 1.0) == times
