"""Axes of charts: their range, and ticks at round numbers."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """A vertical axis in units of the value, or of its logarithm to base 10."""

    low: float  # in axis units
    high: float
    log: bool

    def to_axis(self, values: np.ndarray) -> np.ndarray:
        """Converts values to axis units."""
        return np.log10(values) if self.log else values

    def ticks(self) -> list[tuple[float, str]]:
        """Returns positions in axis units, with labels."""
        if not self.log:
            return [(value, label(value)) for value in round_numbers(self.low, self.high, 4)]
        low, high = 10**self.low, 10**self.high
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [digit * 10.0**decade for decade in decades for digit in digits]
            values = [value for value in values if low <= value <= high]
            if 3 <= len(values) <= 6:
                break
        if len(values) < 3:
            values = [value for value in round_numbers(low, high, 5) if value > 0]
        elif len(values) > 6:
            values = values[:: math.ceil(len(values) / 6)]
        return [(math.log10(value), label(value)) for value in values]


def scale_for(values: np.ndarray, log: bool) -> Scale:
    """Returns an axis for finite `values` (n,), n > 0.

    A linear axis includes zero. A logarithmic one is used only if all values are positive.
    """
    low, high = float(values.min()), float(values.max())
    if log and low > 0:
        bottom, top = math.log10(low), math.log10(high)
        margin = max((top - bottom) * 0.04, 0.02)
        return Scale(bottom - margin, top + margin, log=True)
    low, high = min(low, 0.0), max(high, 0.0)
    return Scale(low * 1.04, high * 1.04 or 1.0, log=False)


def round_numbers(low: float, high: float, about: int) -> list[float]:
    """Returns about `about` multiples of 1, 2 or 5 times a power of ten in low..high."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(value: float) -> str:
    """Formats a value compactly: 0.15, 5e-4, 12k, 2.5M."""
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:.4g}"
