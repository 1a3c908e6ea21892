"""The learning rate of every optimizer step, as a share of optim.lr: plain functions of the step's number.

So nothing of a schedule is kept in a checkpoint, and a resumed run has the rates of one that was never stopped.
"""

import math
from collections.abc import Callable

SCHEDULES = ("constant", "cosine")


def warmup(step: int, steps: int) -> float:
    """Linear over the first `steps` steps (from 0): 1 / steps at step 0, 1 at step `steps` - 1, and 1 ever after."""
    return min(1.0, (step + 1) / max(1, steps))


def cosine(step: int, first: int, last: int, final: float) -> float:
    """Half a cosine wave: 1 up to step `first`, `final` from step `last` on."""
    if step >= last:
        return final
    progress = max(0, step - first) / (last - first) if last > first else 0.0
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def rate_at(step: int, schedule: str, warmup_steps: int, steps: int, final_share: float) -> float:
    """The share at a step (from 0) of a stage of `steps` steps: warm-up, then as `schedule` says.

    With `cosine` the last step of the warm-up has all of the rate, and the stage's last step `final_share` of it.
    """
    warm = warmup(step, warmup_steps)
    if schedule == "constant" or step < warmup_steps:
        return warm
    return cosine(step, max(0, warmup_steps - 1), steps - 1, final_share)


def after(start: int, rate: Callable[[int], float]) -> Callable[[int], float]:
    """The same rates for a scheduler that counts from 0 again when a run goes on after `start` steps."""
    return lambda step: rate(start + step)
