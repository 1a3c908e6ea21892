"""Which steps are image steps: pure functions of (seed, step), and of how many came before, without counting them."""

from bisect import bisect_left
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np

from gen1_train.errors import UserError
from gen1_train.keyed import permutation, uniforms

FINEST = 1000  # largest denominator of a share
CHUNK = 1 << 16  # steps that are counted at once


class Mix(Protocol):
    def is_image(self, step: int) -> bool: ...

    def images_before(self, step: int) -> int:
        """How many of the steps 0..step-1 are image steps."""
        ...


class ExactMix:
    """Aligned blocks, as long as the share's denominator (8 for 12.5 %), each with just its share at keyed places."""

    def __init__(self, seed: int, share: Fraction) -> None:
        self.seed, self.share = seed, share

    def is_image(self, step: int) -> bool:
        block, position = divmod(step, self.share.denominator)
        return permutation(self.share.denominator, self.seed, "kind", block)(position) < self.share.numerator

    def images_before(self, step: int) -> int:
        block, position = divmod(step, self.share.denominator)
        return block * self.share.numerator + bisect_left(_places(self.seed, self.share, block), position)


@lru_cache(maxsize=4)
def _places(seed: int, share: Fraction, block: int) -> list[int]:
    """Where in a block the image steps are, ascending."""
    permuted = permutation(share.denominator, seed, "kind", block)
    return [position for position in range(share.denominator) if permuted(position) < share.numerator]


class IndependentMix:
    """Every step by itself, with the share as its probability: the paper's words taken literally."""

    def __init__(self, seed: int, share: Fraction) -> None:
        self.seed, self.share = seed, float(share)
        self._before = [0]  # image steps before each chunk: a million steps are counted in milliseconds

    def is_image(self, step: int) -> bool:
        return bool(self._images(step, 1))

    def images_before(self, step: int) -> int:
        chunk, position = divmod(step, CHUNK)
        while len(self._before) <= chunk:
            self._before.append(self._before[-1] + self._images((len(self._before) - 1) * CHUNK, CHUNK))
        return self._before[chunk] + self._images(chunk * CHUNK, position)

    def _images(self, first: int, count: int) -> int:
        return int(np.count_nonzero(uniforms(first, count, self.seed, "kind") < self.share))


MIXES: dict[str, type[ExactMix] | type[IndependentMix]] = {"exact": ExactMix, "independent": IndependentMix}


def share_of(ratio: float) -> Fraction:
    """A ratio as the nearest fraction of at most 1000 parts. Raises UserError where that would drop a kind."""
    share = Fraction(ratio).limit_denominator(FINEST)
    if share in (0, 1) and ratio not in (0, 1):
        raise UserError(f"data.image_ratio={ratio} is finer than 1 in {FINEST}: give 0, 1, or something between")
    return share
