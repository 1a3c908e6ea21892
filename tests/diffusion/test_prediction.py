"""Tests of the conversions between x0, eps and v, and of the loss."""

import pytest
import torch
from diffusers import DDPMScheduler

from gen1_train.diffusion.loss import LossConfig, per_sample_loss
from gen1_train.diffusion.prediction import FORMS, as_v, noise_from_v, target, v_from, x_from_v
from gen1_train.diffusion.schedule import NoiseConfig, NoiseSchedule


def test_x_and_noise_are_recovered_from_v() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64).unbind(0)
    angle = torch.tensor([0.0, 0.1, 0.8, 1.5, torch.pi / 2], dtype=torch.float64).view(5, 1, 1, 1)
    alpha, sigma = angle.cos(), angle.sin()
    z, v = alpha * x + sigma * noise, v_from(x, noise, alpha, sigma)
    torch.testing.assert_close(x_from_v(z, v, alpha, sigma), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noise_from_v(z, v, alpha, sigma), noise, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(v[0], noise[0])  # pure signal: v is the noise
    torch.testing.assert_close(v[-1], -x[-1])  # pure noise: v is the negated image


def test_v_equals_the_velocity_of_diffusers() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3, 2, 4, 4).unbind(0)
    times = torch.tensor([0, 500, 999])
    alpha, sigma = NoiseSchedule(NoiseConfig()).at(times, x)
    expected = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear").get_velocity(x, noise, times)
    torch.testing.assert_close(v_from(x, noise, alpha, sigma), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_squared_error_of_each_sample() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 3, 2, 4, 5, 6).unbind(0)
    loss = per_sample_loss(prediction, target)
    assert loss.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(loss[i], torch.nn.functional.mse_loss(prediction[i], target[i]))


def test_the_loss_is_computed_in_float32() -> None:
    """In bfloat16 a sum of many squares would stop growing."""
    prediction = torch.ones(1, 8, 4, 32, 56, dtype=torch.bfloat16)
    loss = per_sample_loss(prediction, torch.zeros_like(prediction))
    assert loss.dtype == torch.float32 and loss.item() == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_converts_to_v(form: str) -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 1000, 3, 2, dtype=torch.float64).unbind(0)
    alpha, sigma = NoiseSchedule(NoiseConfig()).at(torch.arange(1000), x)
    z, v = alpha * x + sigma * noise, v_from(x, noise, alpha, sigma)
    converted = as_v(form, z, target(form, x, noise, alpha, sigma), alpha, sigma)
    # alpha and sigma are float32, so that their squares sum to 1 within 1e-7, divided by the smaller one
    torch.testing.assert_close(converted, v, rtol=0, atol=1e-5)


def test_min_snr_is_the_same_weight_of_an_error_of_x0_in_every_form() -> None:
    """It is min(SNR, gamma) (Hang et al. 2023). An error of x0 is one of v / sigma, and one of eps / SNR^0.5."""
    config = LossConfig("min_snr")
    schedule = NoiseSchedule(NoiseConfig())
    alpha, sigma = schedule.alphas.double(), schedule.sigmas.double()
    snr = (alpha / sigma) ** 2
    wanted = snr.clamp(max=5)
    torch.testing.assert_close(config.weights("x0", alpha, sigma), wanted)
    torch.testing.assert_close(config.weights("eps", alpha, sigma) * snr, wanted)
    torch.testing.assert_close(config.weights("v", alpha, sigma) / sigma**2, wanted, rtol=1e-5, atol=0)
    assert torch.equal(LossConfig().weights("v", alpha, sigma), torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize(("form", "weight"), [("v", 0.0), ("eps", 1.0), ("x0", 0.0)])
def test_without_signal_the_weight_is_its_limit(form: str, weight: float) -> None:
    found = LossConfig("min_snr").weights(form, torch.zeros(1), torch.ones(1))
    assert found.item() == weight
