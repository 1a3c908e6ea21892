"""The counters of a run besides its steps; they are saved in checkpoints."""

from dataclasses import dataclass, field


@dataclass
class Counters:
    """Equal on all ranks."""

    updates: int = 0  # optimizer steps that changed the weights: those done minus those skipped
    skipped: int = 0  # optimizer steps of this stage that the guard skipped
    in_a_row: int = 0  # skipped steps since the last step that was taken
    averaged: dict[str, int] = field(default_factory=dict)  # average -> number of updates so far
    norms: dict[str, float] = field(default_factory=dict)  # guard.Norms: statistics of the gradient norm so far


def is_due(step: int, done: int, every: int, steps: int) -> bool:
    """Whether something is due that happens every `every` steps and at the last; `done`: the step of the last time."""
    return every > 0 and step != done and (step % every == 0 or step == steps)
