"""The order in which the samples of one pool are read: the nth use of a pool is a pure function of (seed, pool, n).

A pool is read in epochs: with N samples, uses eN to eN + N - 1 are epoch e, in which every sample comes exactly once.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from gen1_train.data.manifest import PoolShards
from gen1_train.keyed import permutation


class Order(Protocol):
    def sample(self, use: int) -> int:
        """Returns the index of the sample that use number `use` (from 0) of the pool reads."""
        ...


class GlobalOrder:
    """A keyed permutation of the whole pool in each epoch. It takes no memory, and may read any shard at any time."""

    def __init__(self, pool: PoolShards, seed: int) -> None:
        self.name = pool.pool.name
        self.samples = pool.samples
        self.seed = seed

    def sample(self, use: int) -> int:
        epoch, position = divmod(use, self.samples)
        return permutation(self.samples, self.seed, "sample", self.name, epoch)(position)


class Epoch(NamedTuple):
    """The shards of a pool in the order of one epoch, and their division into lanes."""

    shards: list[int]  # their numbers
    ends: list[int]  # cumulative number of samples after each of these shards
    lanes: list[int]  # positions among these samples at which each lane begins, and at which the last one ends


class BlockOrder:
    """Reads a few shards at a time, for object stores and parallel file systems where every random read costs a seek.

    In each epoch the shards are concatenated in keyed order, and this sequence is cut into L lanes. A lane is read from
    its start, window by window, and the samples within a window are permuted. A window has as many samples as `window`
    shards have on average, so a lane reads from about window + 1 shards at any time. The lanes reach their next windows
    one after the other, so that new shards are fetched at an even rate.

    The uses are dealt to the lanes round by round: the first 1/L of each `round` to the first lane, and so on. A round
    is a global batch, whose slots are assigned to the ranks in order: with at least as many lanes as nodes, each node
    reads shards that no other node reads. A lane gets exactly as many samples as uses of the epoch fall on it, so every
    sample still comes once, whatever the sizes of shards, lanes and batches. A run whose global batch is changed keeps
    its round.
    """

    def __init__(self, pool: PoolShards, seed: int, round_: int, lanes: int, window: int) -> None:
        """`round_`: uses in a round. `window`: in shards."""
        self.name = pool.pool.name
        self.samples = pool.samples
        self.seed = seed
        self.round = round_
        self.lanes = min(lanes, round_)
        self.sizes = [shard.samples for shard in pool.shards]
        self.starts = pool.starts
        self.window = min(self.samples, window * -(-self.samples // len(self.sizes)))  # in samples
        self._epoch = lru_cache(maxsize=2)(self._shuffle_shards)

    def sample(self, use: int) -> int:
        epoch, _ = divmod(use, self.samples)
        lane = use % self.round * self.lanes // self.round
        order = self._epoch(epoch)
        position = self._uses_before(lane, use) - self._uses_before(lane, epoch * self.samples)
        length = order.lanes[lane + 1] - order.lanes[lane]
        ahead = lane * self.window // self.lanes  # samples by which this lane's windows begin earlier
        window = (position + ahead) // self.window
        begin = max(0, window * self.window - ahead)
        end = min(length, (window + 1) * self.window - ahead)
        permuted = permutation(end - begin, self.seed, "window", self.name, epoch, lane, window)(position - begin)
        return self._sample_at(order, order.lanes[lane] + begin + permuted)

    def _sample_at(self, order: Epoch, position: int) -> int:
        """The index in the pool of the sample at a position of an epoch's sequence of shards."""
        number = bisect_right(order.ends, position)
        shard = order.shards[number]
        return self.starts[shard] + position - (order.ends[number] - self.sizes[shard])

    def _uses_before(self, lane: int, use: int) -> int:
        """How many of the uses 0 to use - 1 fall on a lane."""
        first, last = (-(-number * self.round // self.lanes) for number in (lane, lane + 1))
        rounds, position = divmod(use, self.round)
        return rounds * (last - first) + min(max(position - first, 0), last - first)

    def _shuffle_shards(self, epoch: int) -> Epoch:
        permuted = permutation(len(self.sizes), self.seed, "shard", self.name, epoch)
        shards = [permuted(number) for number in range(len(self.sizes))]
        begin = epoch * self.samples
        lengths = [
            self._uses_before(lane, begin + self.samples) - self._uses_before(lane, begin) for lane in range(self.lanes)
        ]
        ends = list(accumulate(self.sizes[shard] for shard in shards))
        return Epoch(shards, ends, list(accumulate(lengths, initial=0)))
