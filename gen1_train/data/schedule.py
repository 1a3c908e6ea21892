"""The schedule of training: what step t reads, as a pure function of (seed, step, slot).

Most trainers stream their shards: each worker has its own files and a shuffle buffer, and only the worker itself knows
its position. As a result, ranks disagree about the shape of the next batch and hang, a batch repeats clips of a single
video, the contents of the buffers are lost with a killed job, and the order changes with the number of GPUs. Here no
process has a position. The number of a step determines what all ranks together read in it, the slots determine which
rank reads what, and a resumed run asks for the next number. It does not need to know how many ranks, workers or
micro-batches there were before.

A step reads one global batch from one pool (a kind and a size), so all ranks agree on the shape without communication.
Three choices are made for each step. Each is random, but in exact proportions:

kind    An image step or a video step. The steps are divided into aligned blocks, as long as the denominator of the
        image steps' share (8 for the paper's 12.5 %). Each block has exactly its share of image steps (1), at keyed
        positions. `mix=independent` draws every step independently. See `data.mix`.
bucket  A pool of that kind. In every period of `PERIOD` steps of the kind, the pools come up in proportion to their
        frames (by largest remainder, at least once each), in keyed order, so that the epochs of all last equally long.
sample  The samples of that pool. The uses of a pool are counted from the first to the last step of the run. Use n
        belongs to epoch n div N, and in every epoch a keyed permutation gives each of the N samples exactly once. There
        is no partial batch and no padding; an epoch may end within a batch, and the trainer itself knows no epochs.
        `order=global` permutes the whole pool, `order=blocks` a few shards at a time. See `data.order`.

Every step costs the same number of frames, so no rank waits for another: an image batch holds `frames` times as many
images as a video batch holds clips (in the paper 9216 and 1152). `data.batch_clips` counts clips of the set's shortest
length, and a pool of clips twice as long has half as many in its batch (ours): a set that gains longer clips keeps all
its other batches, and the longer lengths are usually multiples of the shortest.

The noise, the timestep and everything else that is random in training are keyed by (seed, step, slot, purpose) as well;
see `training.draws`. The part of this that a checkpoint stores is in `data.state`.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import gcd, lcm
from typing import Any

from gen1_train.data.manifest import PoolShards
from gen1_train.data.mix import MIXES, share_of
from gen1_train.data.order import BlockOrder, GlobalOrder, Order
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import key, permutation

PERIOD = 256  # steps of a kind in which its pools come up in proportion; ours
STREAM_VERSION = 1  # incremented when the same settings begin to give another stream


@dataclass(frozen=True)
class Settings:
    """The settings that, with the shard set, decide the stream."""

    seed: int
    image_ratio: float  # share of image steps
    clips: int  # global batch of a video step, in clips of the set's shortest length
    frames: int = 8  # of these clips, if the set has no videos
    mix: str = "exact"  # or independent
    order: str = "global"  # or blocks
    window: int = 8  # order=blocks: shards that a lane mixes at a time
    lanes: int = 8  # order=blocks: parts of the global batch that read shards of their own


@dataclass(frozen=True)
class Start:
    """The point at which a schedule takes over from another one; by default the beginning of a run."""

    step: int = 0
    cursors: Mapping[str, int] = field(default_factory=dict)  # pool -> samples of it that were read before
    round: int | None = None  # clips in the run's first global batch; None: the schedule's own


@dataclass(frozen=True)
class Step:
    """The reads of one optimizer step: `size` samples of one pool, from the pool's use `first` on."""

    pool: str
    kind: str
    samples: int  # in the pool
    first: int  # samples of this pool that all earlier steps have used
    size: int  # of the global batch, in samples


class Schedule:
    """Maps (step, slot) to a sample of a shard set. It is cheap to build and immutable."""

    def __init__(self, shards: ShardSet, settings: Settings, start: Start | None = None) -> None:
        """Raises UserError if the set lacks a kind that is to be read, if the global batch is no whole number of clips
        of each length, or if a pool is smaller than its batch. A set may allow the latter; then epochs end within the
        batch.
        """
        self.shards = shards
        self.start = start or Start()
        self.lengths = sorted({pool.frames for pool in shards.pools("video")})  # of the set's clips
        self.settings = replace(settings, frames=min(self.lengths, default=settings.frames))
        self.share = share_of(settings.image_ratio)
        kinds = [kind for kind, share in (("image", self.share), ("video", 1 - self.share)) if share]
        self._mix = MIXES[settings.mix](settings.seed, self.share)
        self._pools = {kind: shards.pools(kind) for kind in kinds}
        for kind in kinds:
            self._check(kind)
        self._quotas = {
            kind: tuple(quotas([pool.samples * pool.frames for pool in pools], PERIOD))
            for kind, pools in self._pools.items()
        }
        self._orders = {pool.pool.name: self._order(pool) for pool in self.pools}
        self._batches_at_start = {kind: self._batches(kind, self.start.step) for kind in kinds}

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "settings": self.settings, "start": self.start}  # a worker rebuilds the rest

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def pools(self) -> list[PoolShards]:
        """The pools that are read."""
        return [pool for pools in self._pools.values() for pool in pools]

    def batch_size(self, frames: int) -> int:
        """Returns the samples in a global batch of a pool whose samples have this number of frames (images: 1)."""
        return self.settings.clips * self.settings.frames // frames

    def kind(self, step: int) -> str:
        return "image" if self._mix.is_image(step) else "video"

    def image_share(self, step: int) -> float:
        """Returns the share of image steps from the start of this schedule up to, but not including, `step`."""
        images = self._mix.images_before(step) - self._mix.images_before(self.start.step)
        return images / (step - self.start.step)

    def at(self, step: int) -> Step:
        """Returns what optimizer step `step` (from 0) reads."""
        kind = self.kind(step)
        period, position = divmod(self._steps_before(kind, step), PERIOD)
        number = self._bucket_order(kind, period)[position]
        pool = self._pools[kind][number]
        first = self._used(kind, number, self._batches(kind, step)[number])
        return Step(pool.pool.name, kind, pool.samples, first, self.batch_size(pool.frames))

    def sample(self, step: Step, slot: int) -> int:
        """Returns the index in the step's pool of the sample in slot `slot` of the global batch."""
        return self._orders[step.pool].sample(step.first + slot)

    def cursors(self, step: int) -> dict[str, int]:
        """Returns, for each pool, the number of its samples that all steps before `step` have read.

        This includes the steps before the start, and pools that only those have read.
        """
        used = {
            pool.pool.name: self._used(kind, number, batches)
            for kind, pools in self._pools.items()
            for number, (pool, batches) in enumerate(zip(pools, self._batches(kind, step)))
        }
        return {**self.start.cursors, **used}

    @cached_property
    def hash(self) -> str:
        """sha256 over everything that decides the stream: settings, start, and the sizes of the pools' shards."""
        pools = {pool.pool.name: [shard.samples for shard in pool.shards] for pool in self.pools}
        parts = {
            "meaning": STREAM_VERSION,
            "settings": asdict(self.settings),
            "start": asdict(self.start),
            "pools": pools,
        }
        if len(self.lengths) > 1:  # with a single one, it is in the settings
            parts["lengths"] = {pool.pool.name: pool.frames for pool in self.pools}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _check(self, kind: str) -> None:
        root = self.shards.root
        if not self._pools[kind]:
            other = "data.image_ratio=0" if kind == "image" else "data.image_ratio=1"
            raise UserError(f"the shard set {root} has no {kind}s: add some with gen1-data, or set {other}")
        if kind == "video":
            check_batch(self.settings.clips, self.lengths)
        for pool in self._pools[kind]:
            if pool.samples < self.batch_size(pool.frames) and not self.shards.allow_repeats:
                raise UserError(
                    f"pool {pool.pool.name} has {pool.samples} samples, fewer than one global batch of "
                    f"{self.batch_size(pool.frames)}: add data, leave the bucket out of the recipe, or lower "
                    "data.batch_clips"
                )

    def _order(self, pool: PoolShards) -> Order:
        settings = self.settings
        if settings.order == "global":
            return GlobalOrder(pool, settings.seed)
        round_ = (self.start.round or settings.clips) * settings.frames // pool.frames
        return BlockOrder(pool, settings.seed, max(1, round_), settings.lanes, settings.window)

    def _steps_before(self, kind: str, step: int) -> int:
        """How many of the steps 0 to step - 1 are of a kind."""
        images = self._mix.images_before(step)
        return images if kind == "image" else step - images

    def _batches(self, kind: str, step: int) -> list[int]:
        """Batches of each pool of a kind that steps 0 to step - 1 read, as if all of them followed this schedule."""
        period, position = divmod(self._steps_before(kind, step), PERIOD)
        begun = self._bucket_order(kind, period)[:position]
        return [period * quota + begun.count(number) for number, quota in enumerate(self._quotas[kind])]

    def _used(self, kind: str, number: int, batches: int) -> int:
        """Samples of a pool that have been read when `_batches` counts `batches` of it."""
        pool = self._pools[kind][number]
        before = self.start.cursors.get(pool.pool.name, 0)
        return before + (batches - self._batches_at_start[kind][number]) * self.batch_size(pool.frames)

    def _bucket_order(self, kind: str, period: int) -> list[int]:
        return _bucket_order(self.settings.seed, kind, period, self._quotas[kind])


@lru_cache(maxsize=8)
def _bucket_order(seed: int, kind: str, period: int, quota: Sequence[int]) -> list[int]:
    """The pool numbers of one period, each as often as its quota says, in keyed order."""
    pools = [pool for pool, times in enumerate(quota) for _ in range(times)]
    permuted = permutation(PERIOD, seed, "bucket", kind, period)
    return [pools[permuted(position)] for position in range(PERIOD)]


def quotas(sizes: Sequence[int], total: int) -> list[int]:
    """Splits `total` in proportion to `sizes`, by the largest remainder; each part is at least 1.

    The minimum (ours) ensures that a tiny pool is read at all, more often than its size would give. Raises UserError
    for more than `total` sizes.
    """
    if len(sizes) > total:
        raise UserError(
            f"{len(sizes)} pools of one kind are more than the {total} that a schedule can hold: use fewer buckets"
        )
    shares = [Fraction(size * total, sum(sizes)) for size in sizes]
    result = [max(1, int(share)) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - result[i], reverse=True)
    for i in by_remainder[: max(0, total - sum(result))]:
        result[i] += 1
    while sum(result) > total:
        result[max(range(len(sizes)), key=lambda i: result[i])] -= 1
    return result


def stage_seed(seed: int, stage: str) -> int:
    """Derives the seed of one stage of a run. Otherwise all stages would pair the same clips with the same noise."""
    return key(seed, "stage", stage)


def check_batch(clips: int, lengths: Collection[int], parts: int = 1) -> None:
    """Raises UserError if a global batch of `clips` of the shortest of `lengths` is not whole clips of each length, in
    each of `parts` equal parts.
    """
    step = parts * common_clips(lengths)
    if len(set(lengths)) > 1 and clips % step:
        listed = ", ".join(map(str, sorted(lengths)))
        divided = f" in each of {parts} micro-batches" if parts > 1 else ""
        raise UserError(
            f"data.batch_clips={clips} counts clips of {min(lengths)} frames and is no whole number of clips of each "
            f"length of the set ({listed}){divided}: give a multiple of {step}, such as {-(-clips // step) * step}"
        )


def common_clips(lengths: Collection[int]) -> int:
    """Returns the fewest clips of the shortest of `lengths` that are as many frames as whole clips of each length."""
    return lcm(*(length // gcd(length, min(lengths)) for length in lengths))
