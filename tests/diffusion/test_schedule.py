"""Tests of the noise schedule: variance preserving, and equal to the one that Stable Diffusion was trained with."""

import pytest
import torch
from diffusers import DDPMScheduler

from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule

CONFIGS = [NoiseConfig(), NoiseConfig(steps=50, beta_start=0.001, beta_end=0.2)]


@pytest.mark.parametrize("config", CONFIGS)
def test_variance_is_preserved_and_noise_grows(config: NoiseConfig) -> None:
    schedule = NoiseSchedule(config)
    assert schedule.alphas.shape == schedule.sigmas.shape == (config.steps,)
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones(config.steps))
    assert (schedule.alphas.diff() < 0).all() and (schedule.sigmas.diff() > 0).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_values_equal_those_of_stable_diffusion(config: NoiseConfig) -> None:
    reference = DDPMScheduler(config.steps, config.beta_start, config.beta_end, "scaled_linear")
    ours = NoiseSchedule(config).alphas ** 2
    torch.testing.assert_close(ours, reference.alphas_cumprod, rtol=2e-5, atol=0)  # diffusers multiplies in float32


def test_noise_is_added_as_in_diffusers() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    times = torch.tensor([0, 400, 999])
    reference = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    z = NoiseSchedule(NoiseConfig()).add_noise(x, noise, times)
    torch.testing.assert_close(z, reference.add_noise(x, noise, times), rtol=1e-4, atol=1e-5)


def test_each_sample_has_its_own_noise_level_for_any_shape() -> None:
    schedule = NoiseSchedule(NoiseConfig())
    times = torch.tensor([7, 7, 900])
    for shape in ((3,), (3, 2), (3, 2, 4, 5, 6)):
        alpha, sigma = schedule.at(times, torch.zeros(shape, dtype=torch.float64))
        assert alpha.shape == sigma.shape == (3,) + (1,) * (len(shape) - 1)
        assert alpha.dtype == torch.float64  # the dtype of the tensor that it multiplies
        assert alpha.flatten().tolist() == [float(schedule.alphas[t]) for t in times]
