"""Tests of the noise schedule: variance preserving, and equal to the one that Stable Diffusion was trained with."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from gen1_train.diffusion.schedule import NO_SIGNAL, NoiseConfig, NoiseSchedule
from gen1_train.errors import UserError

CONFIGS = [NoiseConfig(), NoiseConfig(steps=50, beta_start=0.001, beta_end=0.2)]
ZERO = NoiseConfig(zero_terminal_snr=True)


@pytest.mark.parametrize("config", [*CONFIGS, ZERO])
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


def test_without_terminal_signal_it_equals_that_of_diffusers() -> None:
    plain, zero = NoiseSchedule(NoiseConfig()), NoiseSchedule(ZERO)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - rescale_zero_terminal_snr(betas)).cumprod(0).sqrt()
    torch.testing.assert_close(zero.alphas.double(), expected, rtol=1e-5, atol=1e-6)
    assert zero.alphas[-1] == 0 and zero.sigmas[-1] == 1 and zero.alphas[0] == plain.alphas[0]
    assert abs((1 - torch.tensor(zero.betas, dtype=torch.float64)).cumprod(0)[-1] - NO_SIGNAL) < 1e-12


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NoiseConfig(prediction="noise"), r"noise\.prediction=noise is not one of v, eps, x0"),
        (
            NoiseConfig(prediction="eps", zero_terminal_snr=True),
            "says nothing about the video .* give prediction=v or x0",
        ),
        (NoiseConfig(shared=1.5), r"noise\.shared"),
        (NoiseConfig(offset=-0.1), r"noise\.offset"),
    ],
)
def test_what_cannot_be_is_refused(config: NoiseConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check()
