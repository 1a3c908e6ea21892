"""Chooses the image steps: pure functions of (seed, step), and of how many image steps come before, without iterating.

Counting matters because a run resumes at any step.
"""

from bisect import bisect_left
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np

from gen1_train.errors import UserError
from gen1_train.keyed import permutation, uniforms

MAX_DENOMINATOR = 1000  # of a share; ours
CHUNK = 1 << 16  # steps that are counted at once


class Mix(Protocol):
    def is_image(self, step: int) -> bool: ...

    def images_before(self, step: int) -> int:
        """The number of image steps among steps 0 to step - 1."""
        ...


class ExactMix:
    """Aligned blocks as long as the share's denominator (8 for 12.5 %), each with exactly its share of image steps.

    Their positions in a block are keyed.
    """

    def __init__(self, seed: int, share: Fraction) -> None:
        self.seed = seed
        self.share = share

    def is_image(self, step: int) -> bool:
        block, position = divmod(step, self.share.denominator)
        return permutation(self.share.denominator, self.seed, "kind", block)(position) < self.share.numerator

    def images_before(self, step: int) -> int:
        block, position = divmod(step, self.share.denominator)
        return block * self.share.numerator + bisect_left(_image_positions(self.seed, self.share, block), position)


@lru_cache(maxsize=4)
def _image_positions(seed: int, share: Fraction, block: int) -> list[int]:
    """The positions of a block's image steps, ascending."""
    permuted = permutation(share.denominator, seed, "kind", block)
    return [position for position in range(share.denominator) if permuted(position) < share.numerator]


class IndependentMix:
    """Each step is drawn independently, with the share as its probability: the literal reading of the paper."""

    def __init__(self, seed: int, share: Fraction) -> None:
        self.seed = seed
        self.share = float(share)
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
    """Returns the nearest fraction with a denominator of at most 1000. Raises UserError if that would drop a kind."""
    share = Fraction(ratio).limit_denominator(MAX_DENOMINATOR)
    if share in (0, 1) and ratio not in (0, 1):
        raise UserError(
            f"data.image_ratio={ratio} is finer than 1 in {MAX_DENOMINATOR}: give 0, 1, or a share in between"
        )
    return share
