"""Exponential moving averages of the weights (ours; the paper does not mention any).

They are kept in float32 and updated from the float32 masters. Each process averages what it holds: under ZeRO its own
part, so that an average costs no communication and 1/N of its bytes; in `single` and `ddp` everything. Each weight is
averaged separately, so an average does not depend on how the weights are divided.
"""

from dataclasses import dataclass, field

from gen1_train.errors import UserError, check_choice
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.checkpoints.state import PlainState

DEVICES = ("same", "cpu")


@dataclass
class EmaConfig:
    """Validation, editing, export and the next stage use the first average, or the weights if there is none."""

    decays: list[float] = field(default_factory=lambda: [0.9999])  # decays, with one average each; []: none
    device: str = "same"  # as the weights; cpu: in CPU memory, with strategy=single or ddp

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        check_choice("ema.device", self.device, DEVICES)
        setting = f"ema.decays={self.decays}"
        if any(not 0 < decay < 1 for decay in self.decays):
            raise UserError(f"{setting}: give numbers between 0 and 1, such as [0.9999], or [] for no average")
        if len({name_of(decay) for decay in self.decays}) < len(self.decays):
            raise UserError(f"{setting}: two of them are equal to six digits; remove one")


def name_of(decay: float) -> str:
    """Returns the name of the average of a decay, as in checkpoints."""
    return f"ema_{decay:g}"


def rate(decay: float, averaged: int) -> float:
    """Returns the rate of the next update after n = `averaged` updates: 1 - min(decay, (1 + n) / (10 + n)).

    The warmup lets an average forget its initial weights soon (as in TensorFlow's ExponentialMovingAverage).
    """
    return 1 - min(decay, (1 + averaged) / (10 + averaged))


def update(state: PlainState, counters: Counters, decays: list[float]) -> None:
    """Updates all averages with the weights after a step."""
    rates = {name_of(decay): rate(decay, counters.averaged[name_of(decay)]) for decay in decays}
    state.average(rates)
    for name in rates:
        counters.averaged[name] += 1
