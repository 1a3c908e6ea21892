"""Axes of charts: the range, and ticks at round numbers."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """A vertical axis. Its unit is the value itself, or the value's logarithm to base 10."""

    low: float  # in the axis' unit
    high: float
    log: bool

    def place(self, values: np.ndarray) -> np.ndarray:
        """Values -> the axis' unit."""
        return np.log10(values) if self.log else values

    def ticks(self) -> list[tuple[float, str]]:
        """Place in the axis' unit, and what is written there."""
        if not self.log:
            return [(value, label(value)) for value in round_numbers(self.low, self.high, 4)]
        low, high = 10**self.low, 10**self.high
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [digit * 10.0**decade for decade in decades for digit in digits]
            found = [value for value in found if low <= value <= high]
            if 3 <= len(found) <= 6:
                break
        if len(found) < 3:
            found = [value for value in round_numbers(low, high, 5) if value > 0]
        elif len(found) > 6:
            found = found[:: math.ceil(len(found) / 6)]
        return [(math.log10(value), label(value)) for value in found]


def scale_for(values: np.ndarray, log: bool) -> Scale:
    """The axis that holds all of the finite `values` (n,), n > 0; a linear one begins at zero.

    A logarithmic one is made only where all are above zero.
    """
    low, high = float(values.min()), float(values.max())
    if log and low > 0:
        bottom, top = math.log10(low), math.log10(high)
        margin = max((top - bottom) * 0.04, 0.02)
        return Scale(bottom - margin, top + margin, log=True)
    low, high = min(low, 0.0), max(high, 0.0)
    return Scale(low * 1.04, high * 1.04 or 1.0, log=False)


def round_numbers(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in low..high, about so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(value: float) -> str:
    """A value beside an axis, short: 0.15, 5e-4, 12k, 2.5M."""
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:.4g}"
