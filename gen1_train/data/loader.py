"""Schedule + shards -> batches. A worker builds a whole micro-batch; where it stands depends on the step alone."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from gen1_train.batch import Batch, Sample, SampleError, collate
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import key

SUBSTITUTES = 4  # bad samples in a row before the set is called broken


@dataclass
class DataConfig:
    root: str | None = None  # a shard set frozen by gen1-data; a URL if there is a cache
    batch_clips: int = 1152  # global batch of a video step, in clips; image steps read clips x frames images
    image_ratio: float | None = None  # share of image steps; null: as the stage says
    mix: str = "exact"  # image steps: exact, their share of every aligned block; or independent draws
    order: str = "global"  # of samples: global, any of the pool next; or blocks, of few shards at a time
    window: int = 8  # order=blocks: shards that a lane mixes at a time
    lanes: int = 8  # order=blocks: parts of the global batch that read shards of their own; a multiple of the nodes
    workers: int = 4  # loader processes per rank; 0 loads in the training process
    stall_seconds: float = 300.0  # until a loader worker that brings nothing is called stalled
    cache: str | None = None  # order=blocks: a folder on each node's own disk into which coming shards are copied
    cache_gigabytes: float = 200.0  # that the cache may take on each node


@dataclass(frozen=True)
class Place:
    """Where one process stands among those that share a global batch."""

    rank: int
    world: int
    accumulate: int  # micro-batches per optimizer step and rank

    def slots(self, size: int, micro: int) -> range:
        """The slots of a global batch of `size` that this rank reads as micro-batch `micro` of a step.

        Those of a rank, and of a node, lie side by side: with order=blocks that is what keeps their shards few.
        """
        each = size // (self.world * self.accumulate)
        start = (self.rank * self.accumulate + micro) * each
        return range(start, start + each)


class BatchDataset(Dataset[Batch]):
    """Maps (step, micro-batch) to the Batch that this rank reads then."""

    def __init__(self, shards: ShardSet, schedule: Schedule, place: Place, fields: tuple[str, ...]) -> None:
        self.shards, self.schedule, self.place, self.fields = shards, schedule, place, fields

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        number, micro = position
        step = self.schedule.at(number)
        slots = list(self.place.slots(step.size, micro))
        samples = [self._read(step.pool, self.schedule.sample(step, slot), step.samples) for slot in slots]
        return collate(step.kind, number, slots, samples)

    def _read(self, pool: str, index: int, samples: int) -> Sample:
        """Reads a sample; a bad one is replaced by a keyed other one of its pool, and said."""
        for attempt in range(SUBSTITUTES):
            chosen = index if attempt == 0 else key("substitute", pool, index, attempt) % samples
            try:
                return self.shards.read(pool, chosen, self.fields)
            except SampleError as error:
                reason = error
                print(f"gen1-train: warning: sample {chosen} of {pool} is replaced by another: {error}", flush=True)
        raise UserError(
            f"{SUBSTITUTES} samples in a row of {pool} cannot be read ({reason}); the shard set {self.shards.root} is "
            "damaged: copy it again"
        )


class StepSampler(Sampler[tuple[int, int]]):
    """(step, micro-batch) from a starting step to the last: the whole data state is that one number."""

    def __init__(self, start: int, stop: int, accumulate: int) -> None:
        self.start, self.stop, self.accumulate = start, stop, accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.start, self.stop):
            for micro in range(self.accumulate):
                yield step, micro

    # no __len__: with one, Lightning would skip batches on a resume that the sampler has skipped already


def build_loader(dataset: BatchDataset, start: int, stop: int, workers: int, pin: bool) -> DataLoader[Batch]:
    """Batches of the steps start..stop-1, in order."""
    return DataLoader(
        dataset,
        sampler=StepSampler(start, stop, dataset.place.accumulate),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        # neither CUDA nor the threads of this process survive a fork; a forkserver's workers outlive a killed rank
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=False,
    )
