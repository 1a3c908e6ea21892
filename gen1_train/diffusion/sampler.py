"""Samplers over any denoiser in v form, all with one signature: deterministic given their first noise.

    sampler(denoise, z, schedule, times, after) -> clean latents

`denoise(z, timesteps (b,)) -> v` is called once for each of `times`, which descend. `after(z, t)` may change the
latents that have been brought to timestep t (None: to clean ones), and is told of every step that way.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gen1_train.diffusion.prediction import noise_from_v, x_from_v
from gen1_train.diffusion.schedule import NoiseSchedule

Denoise = Callable[[Tensor, Tensor], Tensor]
After = Callable[[Tensor, int | None], Tensor]
Sampler = Callable[[Denoise, Tensor, NoiseSchedule, Sequence[int], After], Tensor]


def timesteps(schedule: NoiseSchedule, steps: int, share: float = 1.0) -> list[int]:
    """`steps` timesteps, T / steps apart, down from T - 1: always from pure noise, none twice for steps <= T.

    `share`: only the last of them, that share of the steps and at least one, for sampling that begins in noised latents
    (SDEdit, Meng et al. 2022).
    """
    times = [schedule.steps - 1 - i * schedule.steps // steps for i in range(steps)]
    return times[-max(1, round(share * steps)) :]


def unchanged(z: Tensor, t: int | None) -> Tensor:
    return z


def ddim(
    denoise: Denoise, z: Tensor, schedule: NoiseSchedule, times: Sequence[int], after: After = unchanged
) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12 with eta = 0): latents z (b, ...) at timestep times[0] -> clean ones."""
    for t, to in zip(times, [*times[1:], None]):
        now = torch.full((len(z),), t, device=z.device)
        alpha, sigma = schedule.at(now, z)
        v = denoise(z, now)
        x, eps = x_from_v(z, v, alpha, sigma), noise_from_v(z, v, alpha, sigma)
        if to is not None:
            alpha, sigma = schedule.at(torch.full_like(now, to), z)
            x = alpha * x + sigma * eps
        z = after(x, to)
    return z


def dpm_solver(
    denoise: Denoise, z: Tensor, schedule: NoiseSchedule, times: Sequence[int], after: After = unchanged
) -> Tensor:
    """DPM-Solver++ (Lu et al. 2022), second order, multistep, by diffusers: as `ddim`, in fewer steps."""
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
    for t, to in zip(times, [*times[1:], None]):
        v = denoise(z, torch.full((len(z),), t, device=z.device))
        z = after(solver.step(v, t, z, return_dict=False)[0], to)
    return z


SOLVERS: dict[str, Sampler] = {"ddim": ddim, "dpm++": dpm_solver}
