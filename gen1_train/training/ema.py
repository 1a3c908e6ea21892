"""Exponential moving averages of the weights (ours; the paper does not say whether it averages).

They are kept in float32 and fed by the float32 masters, each process what it holds of them: under ZeRO its own part, so
that an average costs no communication and 1/N of its bytes, in `single` and `ddp` all. Each weight is averaged by
itself, so an average is the same however the weights are spread.
"""

from dataclasses import dataclass, field

from gen1_train.training.counters import Counters
from gen1_train.training.state import PlainState


@dataclass
class EmaConfig:
    """Validation, editing, export and the next stage use the first average, or the weights where there is none."""

    decays: list[float] = field(default_factory=lambda: [0.9999])  # one average for each; []: none


def name_of(decay: float) -> str:
    """What the average of a decay is called, in checkpoints too."""
    return f"ema_{decay:g}"


def rate(decay: float, averaged: int) -> float:
    """How far an average moves to the weights when so many went into it before: 1 - min(decay, (1 + n) / (10 + n)).

    So that it does not remember the weights that it began with for long (as in TensorFlow's ExponentialMovingAverage).
    """
    return 1 - min(decay, (1 + averaged) / (10 + averaged))


def update(state: PlainState, counters: Counters, decays: list[float]) -> None:
    """Takes the weights of a step into all averages."""
    rates = {name_of(decay): rate(decay, counters.averaged[name_of(decay)]) for decay in decays}
    state.average(rates)
    for name in rates:
        counters.averaged[name] += 1
