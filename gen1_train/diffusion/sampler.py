"""Samplers for any denoiser in v form. All are deterministic given the initial noise and share one signature.

    sampler(denoise, z, schedule, times, after_step) -> clean latents

`denoise(z, timesteps (b,)) -> v` is called once for each of `times`, in descending order. `after_step(z, t)` is called
after every step with the latents at the new timestep t (None: clean latents); its result replaces them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gen1_train.diffusion.prediction import noise_from_v, x_from_v
from gen1_train.diffusion.schedule import NoiseSchedule

Denoise = Callable[[Tensor, Tensor], Tensor]
AfterStep = Callable[[Tensor, int | None], Tensor]
Sampler = Callable[[Denoise, Tensor, NoiseSchedule, Sequence[int], AfterStep], Tensor]


def timesteps(schedule: NoiseSchedule, steps: int, share: float = 1.0) -> list[int]:
    """Returns `steps` timesteps, about T / steps apart, from T - 1 down; for steps <= T none occurs twice.

    Sampling starts from pure noise at T - 1, where Stable Diffusion's schedule would still have a trace of the video.
    `share` keeps only the last ones, that share of the steps and at least one: for sampling that starts from noised
    latents (SDEdit, Meng et al. 2022).
    """
    times = [schedule.steps - 1 - i * schedule.steps // steps for i in range(steps)]
    return times[-max(1, round(share * steps)) :]


def unchanged(z: Tensor, t: int | None) -> Tensor:
    return z


def ddim(
    denoise: Denoise, z: Tensor, schedule: NoiseSchedule, times: Sequence[int], after_step: AfterStep = unchanged
) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12 with eta = 0): latents z (b, ...) at timestep times[0] -> clean latents."""
    for t, next_t in zip(times, [*times[1:], None]):
        now = torch.full((len(z),), t, device=z.device)
        alpha, sigma = schedule.at(now, z)
        v = denoise(z, now)
        x, eps = x_from_v(z, v, alpha, sigma), noise_from_v(z, v, alpha, sigma)
        if next_t is not None:
            alpha, sigma = schedule.at(torch.full_like(now, next_t), z)
            x = alpha * x + sigma * eps
        z = after_step(x, next_t)
    return z


def dpm_solver(
    denoise: Denoise, z: Tensor, schedule: NoiseSchedule, times: Sequence[int], after_step: AfterStep = unchanged
) -> Tensor:
    """DPM-Solver++ (Lu et al. 2022), second order, multistep, from diffusers: the quality of `ddim` in fewer steps."""
    from diffusers import DPMSolverMultistepScheduler

    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.steps,
        trained_betas=schedule.betas,
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    solver.set_timesteps(timesteps=list(times), device=z.device)
    for t, next_t in zip(times, [*times[1:], None]):
        v = denoise(z, torch.full((len(z),), t, device=z.device))
        z = after_step(solver.step(v, t, z, return_dict=False)[0], next_t)
    return z


SOLVERS: dict[str, Sampler] = {"ddim": ddim, "dpm++": dpm_solver}
