"""In which order the samples of one pool are read: the n-th use of a pool is a pure function of (seed, pool, n).

A pool is read in epochs: with N samples, uses eN .. eN + N - 1 are epoch e, in which every sample comes exactly once.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from gen1_train.data.shards import PoolShards
from gen1_train.keyed import permutation


class Order(Protocol):
    def sample(self, use: int) -> int:
        """Which sample of the pool its use number `use` (from 0) is."""
        ...


class GlobalOrder:
    """A keyed permutation of the whole pool in each epoch: needs nothing in memory, and reads anywhere at any time."""

    def __init__(self, pool: PoolShards, seed: int) -> None:
        self.name, self.samples, self.seed = pool.pool.name, pool.samples, seed

    def sample(self, use: int) -> int:
        epoch, position = divmod(use, self.samples)
        return permutation(self.samples, self.seed, "sample", self.name, epoch)(position)


class Epoch(NamedTuple):
    """The shards of a pool in the order of one epoch, and what each lane has of them."""

    shards: list[int]  # their numbers
    ends: list[int]  # samples up to and with each of them
    lanes: list[int]  # where each lane's samples begin in that row, and where the last one's end


class BlockOrder:
    """Few shards at a time, for object stores and parallel file systems, where reading anywhere costs a seek each.

    In each epoch the shards are laid in a row in keyed order, and the row is cut into L lanes. A lane is walked from
    its start, window by window, and the samples within a window are permuted. A window has as many samples as `window`
    shards have on average, so that a lane reads from window + 1 shards or so at any time. The lanes come to their next
    windows one after the other, so that new shards are fetched in an even flow.

    The uses are dealt to the lanes round by round: the first L-th of each `round` uses to the first lane, and so on. A
    round is a global batch, whose slots are shared out to the ranks in order: with at least as many lanes as nodes,
    each node reads shards that no other one reads. A lane gets exactly as many samples as uses of the epoch fall on it,
    so every sample still comes once, whatever the sizes of shards, lanes and batches. A run whose global batch is
    changed keeps its round.
    """

    def __init__(self, pool: PoolShards, seed: int, round_: int, lanes: int, window: int) -> None:
        """`round_`: uses in a round; `window`: shards."""
        self.name, self.samples, self.seed = pool.pool.name, pool.samples, seed
        self.round, self.lanes = round_, min(lanes, round_)
        self.sizes = [shard.samples for shard in pool.shards]
        self.starts = pool.starts
        self.window = min(self.samples, window * -(-self.samples // len(self.sizes)))  # samples
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def sample(self, use: int) -> int:
        epoch, _ = divmod(use, self.samples)
        lane = use % self.round * self.lanes // self.round
        row = self._epoch(epoch)
        position = self._dealt(lane, use) - self._dealt(lane, epoch * self.samples)
        length = row.lanes[lane + 1] - row.lanes[lane]
        ahead = lane * self.window // self.lanes  # by which its windows begin earlier
        window = (position + ahead) // self.window
        begin, end = max(0, window * self.window - ahead), min(length, (window + 1) * self.window - ahead)
        mixed = permutation(end - begin, self.seed, "window", self.name, epoch, lane, window)(position - begin)
        return self._at(row, row.lanes[lane] + begin + mixed)

    def _at(self, row: Epoch, position: int) -> int:
        """The sample at a position of an epoch's row of shards."""
        number = bisect_right(row.ends, position)
        shard = row.shards[number]
        return self.starts[shard] + position - (row.ends[number] - self.sizes[shard])

    def _dealt(self, lane: int, use: int) -> int:
        """How many of the uses 0..use-1 fall on a lane."""
        first, last = (-(-number * self.round // self.lanes) for number in (lane, lane + 1))
        rounds, place = divmod(use, self.round)
        return rounds * (last - first) + min(max(place - first, 0), last - first)

    def _lay_out(self, epoch: int) -> Epoch:
        permuted = permutation(len(self.sizes), self.seed, "shard", self.name, epoch)
        shards = [permuted(number) for number in range(len(self.sizes))]
        begin = epoch * self.samples
        lengths = [self._dealt(lane, begin + self.samples) - self._dealt(lane, begin) for lane in range(self.lanes)]
        ends = list(accumulate(self.sizes[shard] for shard in shards))
        return Epoch(shards, ends, list(accumulate(lengths, initial=0)))
