"""Randomness by key: every draw is a pure function of (seed, what it is for), never of a rank, worker or call order.

So the stream of samples and of noise is the same on 1 process or 64, straight through or resumed, and there is no RNG
state to save.
"""

import hashlib
import math
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit number for a tuple of ints and strings, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for one key. Draws are made on the CPU and then moved, so every device sees the same numbers."""
    return torch.Generator("cpu").manual_seed(key(*parts))


def normal(shape: tuple[int, ...], *parts: int | str) -> Tensor:
    """Standard normal float32 noise of the given shape for one key."""
    return torch.randn(shape, generator=generator(*parts))


def uniform(*parts: int | str) -> float:
    """One number in [0, 1) for one key."""
    return key(*parts) / 2**63


def integer(below: int, *parts: int | str) -> int:
    """One integer in [0, below) for one key (the bias of the modulus is below 2**-32 for any real pool)."""
    return key(*parts) % below


def uniforms(first: int, count: int, *parts: int | str) -> np.ndarray:
    """Numbers first..first+count-1 of an endless row in [0, 1) for one key: float64 (count,); millions in a blink."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return _mix(numbers, key(*parts)) / 2.0**64


class Permutation:
    """A keyed permutation of range(size): O(1) memory for pools of any size.

    A four-round Feistel network over the next power of four, walked until it lands inside the range (on average
    fewer than four times).
    """

    def __init__(self, size: int, *parts: int | str) -> None:
        self.size = size
        self._half = max(1, math.ceil((size - 1).bit_length() / 2))
        self._keys = [key(*parts, round_) for round_ in range(4)]

    def __call__(self, index: int) -> int:
        """Where position `index` goes. Raises IndexError outside of range(size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"{index} is outside of range({self.size})")
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
    """A Permutation; its keys cost more than using it, so those in use are kept."""
    return Permutation(size, *parts)


Number = TypeVar("Number", int, np.ndarray)


def _mix(value: Number, round_key: int) -> Number:
    """A cheap 64-bit integer hash (the finaliser of splitmix64): blake2b per round would cost ten times as much."""
    x = (value + round_key) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
