"""Tests of the conversions between x0, eps and v, and of the loss."""

import torch
from diffusers import DDPMScheduler

from gen1_train.diffusion.loss import per_sample_loss
from gen1_train.diffusion.prediction import noise_from_v, v_from, x_from_v
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
