"""What training step t reads: a pure function of (seed, step, slot), the same on every rank and after every resume.

The trainers of this field stream their shards: each worker has its own files and a shuffle buffer, and where it stands
is known to nobody else. So ranks disagree about the next batch's shape and hang, a batch repeats one video's clips,
what was in the buffers is lost with a killed job, and another number of GPUs is another order. Here nobody stands
anywhere. A step's number says what all ranks together read in it, `slot` says which of them reads what, and a resumed
run asks for the next number. It need not know how many ranks, workers or micro-batches there were before.

A step reads one global batch from one pool (a kind and a size), so all ranks agree on the shape without talking. Three
decisions, each in its own way random, and exact:

kind    An image step or a video step. The steps are cut into aligned blocks, as long as the denominator of the image
        steps' share (8 for the paper's 12.5 %); each block has exactly its share of them (1), at keyed places. `mix=
        independent` draws every step by itself. See `data.mix`.
bucket  Which pool of that kind. In every period of `PERIOD` steps of the kind, a pool comes up in proportion to its
        samples (by largest remainder, at least once), in keyed order.
sample  Which samples of that pool. A pool counts its uses from the first to the last step of the run; use n belongs to
        epoch n div N, and in every epoch a keyed permutation gives each of the N samples exactly once. There is no
        partial batch and no padding, an epoch may end within a batch, and the trainer itself knows no epochs. `order=
        global` permutes the whole pool, `order=blocks` few shards at a time. See `data.order`.

Every step costs the same number of frames, so no rank waits for another: an image batch holds `frames` times as many
images as a video batch holds clips (in the paper 9216 and 1152).

The noise, the timestep and all else that is random in training are drawn from (seed, step, slot, purpose) too; see
`training.draws`. What a checkpoint keeps of all this is in `data.state`: less than a kilobyte.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

from gen1_train.data.mix import MIXES, share_of
from gen1_train.data.order import BlockOrder, GlobalOrder, Order
from gen1_train.data.shards import PoolShards, ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import key, permutation

PERIOD = 256  # steps of a kind in which its pools come up in proportion; ours
MEANING = 1  # of all this: another number where the same settings give another stream


@dataclass(frozen=True)
class Settings:
    """What decides the stream, beside the shard set."""

    seed: int
    image_ratio: float  # share of image steps
    clips: int  # global batch of a video step
    frames: int = 8  # of a clip, where the set has no videos to tell
    mix: str = "exact"  # or independent
    order: str = "global"  # or blocks
    window: int = 8  # order=blocks: shards that a lane mixes at a time
    lanes: int = 8  # order=blocks: parts of the global batch that read shards of their own


@dataclass(frozen=True)
class Start:
    """Where a schedule takes over from another one. The first schedule of a run starts at step 0 with nothing read."""

    step: int = 0
    cursors: Mapping[str, int] = field(default_factory=dict)  # pool -> samples that were read of it before
    round: int | None = None  # clips in the run's first global batch; None: in the schedule's own


@dataclass(frozen=True)
class Step:
    """What one optimizer step reads: `size` samples of one pool, starting at the pool's use `first`."""

    pool: str
    kind: str
    samples: int  # in the pool
    first: int  # how many samples of this pool all earlier steps have used
    size: int  # of the global batch, in samples


class Schedule:
    """Maps (step, slot) to a sample of a shard set. Cheap to build, holds nothing that changes."""

    def __init__(self, shards: ShardSet, settings: Settings, start: Start | None = None) -> None:
        """Raises UserError when a kind is asked for that the set does not have, a pool is smaller than its batch
        (unless the set allows it, and epochs end within the batch), or clips are of several lengths.
        """
        self.shards, self.start = shards, start or Start()
        self.settings = replace(settings, frames=_clip_length(shards, settings.frames))
        self.share = share_of(settings.image_ratio)
        wanted = [kind for kind, share in (("image", self.share), ("video", 1 - self.share)) if share]
        self._frames = {"image": self.settings.frames, "video": 1}  # samples that cost as much as a clip
        self._mix = MIXES[settings.mix](settings.seed, self.share)
        self._pools = {kind: shards.pools(kind) for kind in wanted}
        for kind in wanted:
            self._check(kind)
        self._quotas = {
            kind: tuple(quotas([pool.samples for pool in pools], PERIOD)) for kind, pools in self._pools.items()
        }
        self._orders = {pool.pool.name: self._order(pool) for pool in self.pools}
        self._before = {kind: self._batches(kind, self.start.step) for kind in wanted}

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "settings": self.settings, "start": self.start}  # a worker makes the rest

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def pools(self) -> list[PoolShards]:
        """Those that are read."""
        return [pool for pools in self._pools.values() for pool in pools]

    def batch_size(self, kind: str) -> int:
        """Samples in a global batch of one kind."""
        return self.settings.clips * self._frames[kind]

    def kind(self, step: int) -> str:
        return "image" if self._mix.is_image(step) else "video"

    def image_share(self, step: int) -> float:
        """The share of image steps in those before `step`, from the start of this schedule on."""
        images = self._mix.images_before(step) - self._mix.images_before(self.start.step)
        return images / (step - self.start.step)

    def at(self, step: int) -> Step:
        """What optimizer step `step` (from 0) reads."""
        kind = self.kind(step)
        period, position = divmod(self._steps_before(kind, step), PERIOD)
        number = self._bucket_order(kind, period)[position]
        pool = self._pools[kind][number]
        first = self._used(kind, number, self._batches(kind, step)[number])
        return Step(pool.pool.name, kind, pool.samples, first, self.batch_size(kind))

    def sample(self, step: Step, slot: int) -> int:
        """Which sample of the step's pool stands in place `slot` of the global batch."""
        return self._orders[step.pool].sample(step.first + slot)

    def cursors(self, step: int) -> dict[str, int]:
        """Pool -> how many of its samples all steps before `step` have read, those before the start among them."""
        now = {
            pool.pool.name: self._used(kind, number, batches)
            for kind, pools in self._pools.items()
            for number, (pool, batches) in enumerate(zip(pools, self._batches(kind, step)))
        }
        return {**self.start.cursors, **now}

    @cached_property
    def hash(self) -> str:
        """sha256 over all that decides the stream: settings, start, and the pools' shards by their sizes."""
        pools = {pool.pool.name: [shard.samples for shard in pool.shards] for pool in self.pools}
        parts = {"meaning": MEANING, "settings": asdict(self.settings), "start": asdict(self.start), "pools": pools}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _check(self, kind: str) -> None:
        root = self.shards.root
        if not self._pools[kind]:
            other = "data.image_ratio=0" if kind == "image" else "data.image_ratio=1"
            raise UserError(f"the shard set {root} has no {kind}s: add some with gen1-data, or set {other}")
        for pool in self._pools[kind]:
            if pool.samples < self.batch_size(kind) and not self.shards.repeats:
                raise UserError(
                    f"pool {pool.pool.name} has {pool.samples} samples, fewer than one global batch of "
                    f"{self.batch_size(kind)}: add data, leave the bucket out of the recipe, or lower data.batch_clips"
                )

    def _order(self, pool: PoolShards) -> Order:
        settings = self.settings
        if settings.order == "global":
            return GlobalOrder(pool, settings.seed)
        round_ = (self.start.round or settings.clips) * self._frames[pool.kind]
        return BlockOrder(pool, settings.seed, round_, settings.lanes, settings.window)

    def _steps_before(self, kind: str, step: int) -> int:
        """How many of the steps 0..step-1 are of a kind."""
        images = self._mix.images_before(step)
        return images if kind == "image" else step - images

    def _batches(self, kind: str, step: int) -> list[int]:
        """How many batches of each pool of a kind are in the steps 0..step-1, if all of them go by this schedule."""
        period, position = divmod(self._steps_before(kind, step), PERIOD)
        begun = self._bucket_order(kind, period)[:position]
        return [period * quota + begun.count(number) for number, quota in enumerate(self._quotas[kind])]

    def _used(self, kind: str, number: int, batches: int) -> int:
        """Samples of a pool that have been read after that many batches by this schedule's count."""
        before = self.start.cursors.get(self._pools[kind][number].pool.name, 0)
        return before + (batches - self._before[kind][number]) * self.batch_size(kind)

    def _bucket_order(self, kind: str, period: int) -> list[int]:
        return _bucket_order(self.settings.seed, kind, period, self._quotas[kind])


@lru_cache(maxsize=8)
def _bucket_order(seed: int, kind: str, period: int, quota: Sequence[int]) -> list[int]:
    """The numbers of the pools of one period, each as often as its quota says, in keyed order."""
    places = [pool for pool, times in enumerate(quota) for _ in range(times)]
    permuted = permutation(PERIOD, seed, "bucket", kind, period)
    return [places[permuted(position)] for position in range(PERIOD)]


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


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage of a run: else all stages would pair the same clips with the same noise."""
    return key(seed, "stage", stage)


def _clip_length(shards: ShardSet, otherwise: int) -> int:
    lengths = {pool.frames for pool in shards.pools("video")} or {otherwise}
    if len(lengths) > 1:
        raise UserError(f"the clips in {shards.root} have {sorted(lengths)} frames: freeze them with one recipe")
    return lengths.pop()
