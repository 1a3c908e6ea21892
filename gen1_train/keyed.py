"""Keyed randomness: every draw is a pure function of a seed and its purpose, never of a rank, worker or call order.

The streams of samples and noise are therefore the same on 1 process or 64, uninterrupted or resumed, and there is no
RNG state to save.
"""

import hashlib
import math
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """Hashes ints and strings to a 63-bit number that is the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Returns a CPU generator for one key. Numbers are drawn on the CPU and then moved, so all devices get the same."""
    return torch.Generator("cpu").manual_seed(key(*parts))


def normal(shape: tuple[int, ...], *parts: int | str) -> Tensor:
    """Draws standard normal float32 noise of the given shape for one key."""
    return torch.randn(shape, generator=generator(*parts))


def uniform(*parts: int | str) -> float:
    """Draws one number in [0, 1) for one key."""
    return key(*parts) / 2**63


def integer(below: int, *parts: int | str) -> int:
    """Draws one integer in [0, below) for one key (the modulo bias is below 2**-32 for any realistic pool)."""
    return key(*parts) % below


def uniforms(first: int, count: int, *parts: int | str) -> np.ndarray:
    """Returns numbers `first` to `first + count - 1` of one key's endless stream in [0, 1): float64 (count,).

    The stream can be entered anywhere, and millions of numbers take milliseconds.
    """
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return _mix(numbers, key(*parts)) / 2.0**64


class Permutation:
    """A keyed permutation of range(size), in O(1) memory for any size.

    It is a four-round Feistel network over the next power of four, applied until the result is inside the range (fewer
    than four times on average).
    """

    def __init__(self, size: int, *parts: int | str) -> None:
        self.size = size
        self._half = max(1, math.ceil((size - 1).bit_length() / 2))
        self._keys = [key(*parts, round_) for round_ in range(4)]

    def __call__(self, index: int) -> int:
        """Returns the image of `index`. Raises IndexError outside range(size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"{index} is outside range({self.size})")
        half, mask = self._half, (1 << self._half) - 1
        while True:
            left, right = index >> half, index & mask
            for round_key in self._keys:
                left, right = right, left ^ (_mix(right, round_key) & mask)
            index = left << half | right
            if index < self.size:
                return index


@lru_cache(maxsize=256)
def permutation(size: int, *parts: int | str) -> Permutation:
    """Returns a Permutation. They are cached, because deriving the round keys costs more than using them."""
    return Permutation(size, *parts)


Number = TypeVar("Number", int, np.ndarray)


def _mix(value: Number, round_key: int) -> Number:
    """A cheap 64-bit integer hash, the finalizer of splitmix64. blake2b per round would cost ten times as much."""
    x = (value + round_key) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
