"""What a run counts beside its steps; a checkpoint keeps it."""

from dataclasses import dataclass, field


@dataclass
class Counters:
    """The same on every rank."""

    updates: int = 0  # optimizer steps that changed the weights: those done, less those skipped
    skipped: int = 0  # optimizer steps of this stage that the guard left out
    in_a_row: int = 0  # of these, the last ones without one between that was taken
    averaged: dict[str, int] = field(default_factory=dict)  # average -> weights that went into it so far
    norms: dict[str, float] = field(default_factory=dict)  # guard.Norms: what is known of the gradient norm so far


def is_due(step: int, done: int, every: int, steps: int) -> bool:
    """Whether something that comes every so many steps, and at the last, comes now; `done`: when it came last."""
    return every > 0 and step != done and (step % every == 0 or step == steps)
