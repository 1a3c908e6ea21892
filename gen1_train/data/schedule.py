"""What training step t reads: a pure function of (seed, step, slot), the same on every rank and after every resume.

A step reads one batch from one pool, so all ranks agree on the kind and the shape without talking. Three decisions:

kind    The steps are cut into aligned blocks, as long as the image ratio's denominator (8 for 12.5 %). Every block has
        exactly its share of image steps (1), at keyed positions.
bucket  Among the pools of that kind, by quota: in every period of `PERIOD` steps of the kind, a pool comes up in
        proportion to its size (largest remainder, at least once), in keyed order.
sample  Each pool is read in epochs: its n-th sample use is position n mod size of the keyed permutation of epoch
        n div size. So every sample comes exactly once an epoch, there is no partial batch and no padding, and the
        trainer itself knows no epochs.

Every step costs the same number of frames: an image batch holds `frames` times as many images as a video batch clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gen1_train.data.shards import PoolShards, ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import permute

PERIOD = 64


@dataclass(frozen=True)
class Step:
    """What one optimizer step reads: `size` samples of one pool, starting at the pool's `first` use."""

    pool: str
    kind: str
    samples: int  # in the pool
    first: int  # how many samples of this pool all earlier steps have used
    size: int  # of the global batch, in samples


class Schedule:
    """Maps (step, slot) to a sample of a shard set. Cheap to build, holds nothing that changes."""

    def __init__(self, shards: ShardSet, seed: int, image_ratio: float, clips: int, frames: int = 8) -> None:
        """`clips` is the global batch of a video step, in clips; image_ratio the share of image steps, 0..1.

        `frames`: of a clip, where the set has no videos to tell. Raises UserError when a kind is asked for that the set
        does not have, a pool is smaller than its batch, or clips are of several lengths.
        """
        self.seed = seed
        self.ratio = Fraction(image_ratio).limit_denominator(64)
        wanted = [kind for kind, share in (("image", self.ratio), ("video", 1 - self.ratio)) if share]
        self._pools = {kind: shards.pools(kind) for kind in wanted}
        lengths = {pool.frames for pool in shards.pools("video")} or {frames}
        if len(lengths) > 1:
            raise UserError(f"the clips in {shards.root} have {sorted(lengths)} frames: freeze them with one recipe")
        self._sizes = {"image": clips * lengths.pop(), "video": clips}
        for kind in wanted:
            self._check(shards, kind)
        self._quotas = {kind: quotas([pool.samples for pool in pools], PERIOD) for kind, pools in self._pools.items()}

    def _check(self, shards: ShardSet, kind: str) -> None:
        if not self._pools[kind]:
            other = "data.image_ratio=0" if kind == "image" else "data.image_ratio=1"
            raise UserError(f"the shard set {shards.root} has no {kind}s: add some with gen1-data, or set {other}")
        for pool in self._pools[kind]:
            if pool.samples < self._sizes[kind]:
                raise UserError(
                    f"pool {pool.pool.name} has {pool.samples} samples, fewer than one global batch of "
                    f"{self._sizes[kind]}: add data, leave the bucket out of the recipe, or lower data.batch_clips"
                )

    def batch_size(self, kind: str) -> int:
        """Samples in a global batch of one kind."""
        return self._sizes[kind]

    def kind(self, step: int) -> str:
        return "image" if self._image_step(step) else "video"

    def at(self, step: int) -> Step:
        """What optimizer step `step` (from 0) reads."""
        kind = self.kind(step)
        pools, quota = self._pools[kind], self._quotas[kind]
        period, position = divmod(self._steps_before(step, kind), PERIOD)
        order = self._order(kind, period, quota)
        chosen = order[position]
        uses = period * quota[chosen] + order[:position].count(chosen)
        pool: PoolShards = pools[chosen]
        return Step(pool.pool.name, kind, pool.samples, uses * self._sizes[kind], self._sizes[kind])

    def sample(self, step: Step, slot: int) -> int:
        """Which sample of the step's pool stands in place `slot` of the global batch."""
        epoch, position = divmod(step.first + slot, step.samples)
        return permute(position, step.samples, self.seed, "sample", step.pool, epoch)

    def _image_step(self, step: int) -> bool:
        block, position = divmod(step, self.ratio.denominator)
        rank = permute(position, self.ratio.denominator, self.seed, "kind", block)
        return rank < self.ratio.numerator

    def _steps_before(self, step: int, kind: str) -> int:
        """How many of the steps before this one are of its kind."""
        blocks, position = divmod(step, self.ratio.denominator)
        start = blocks * self.ratio.denominator
        images = blocks * self.ratio.numerator + sum(self._image_step(start + i) for i in range(position))
        return images if kind == "image" else step - images

    def _order(self, kind: str, period: int, quota: Sequence[int]) -> list[int]:
        """The pools of one period, each as often as its quota says, in keyed order."""
        places = [pool for pool, times in enumerate(quota) for _ in range(times)]
        return [places[permute(i, PERIOD, self.seed, "bucket", kind, period)] for i in range(PERIOD)]


def quotas(sizes: Sequence[int], total: int) -> list[int]:
    """Splits `total` in proportion to sizes by the largest remainder; everyone gets at least one.

    The minimum (ours) keeps a tiny pool from never being read; it is then read more often than its size.
    """
    if len(sizes) > total:
        raise UserError(f"{len(sizes)} pools of one kind are more than the {total} that a schedule can hold")
    shares = [Fraction(size * total, sum(sizes)) for size in sizes]
    result = [max(1, int(share)) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - result[i], reverse=True)
    for i in by_remainder[: max(0, total - sum(result))]:
        result[i] += 1
    while sum(result) > total:
        result[max(range(len(sizes)), key=lambda i: result[i])] -= 1
    return result
