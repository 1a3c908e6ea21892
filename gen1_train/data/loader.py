"""Schedule + shards -> batches. A worker builds a whole micro-batch; where it stands depends on the step alone."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from gen1_train.batch import Batch, Reason, Sample, SampleError, collate
from gen1_train.data.schedule import Schedule, Step
from gen1_train.data.shards import ShardSet
from gen1_train.data.watch import IDLE, Board, Watched
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
        self.note: Callable[[str], None] = _no_board  # told what is done before it is done, see watch.Board

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        number, micro = position
        step = self.schedule.at(number)
        slots = list(self.place.slots(step.size, micro))
        samples: list[Sample] = []
        replaced: list[tuple[str, Reason]] = []
        for slot in slots:
            index = self.schedule.sample(step, slot)
            sample, bad = self._read(step, index, f"for step {number}, slot {slot}")
            samples.append(sample)
            replaced += bad
        self.note(f"stacking the samples of step {number}")
        batch = collate(step.kind, number, slots, samples)
        batch.replaced = replaced
        self.note(IDLE)
        return batch

    def _read(self, step: Step, index: int, purpose: str) -> tuple[Sample, list[tuple[str, Reason]]]:
        """Reads a sample; a bad one is replaced by a keyed other one of its pool, said, and named beside the sample."""
        chosen, replaced = index, list[tuple[str, Reason]]()
        for attempt in range(1, SUBSTITUTES + 1):
            doing = f"reading {self._place_of(step.pool, chosen)} {purpose}"
            self.note(doing)
            try:
                return self.shards.read(step.pool, chosen, self.fields), replaced
            except UserError:
                raise
            except SampleError as error:
                problem = error
            except Exception as error:
                error.add_note(f"gen1-train: this was while {doing}")
                raise
            if attempt < SUBSTITUTES:
                substitute = self._substitute(step, index, attempt)
                bad = f"{self._place_of(step.pool, chosen)}{self._key(step.pool, chosen)}"
                print(f"gen1-train: warning: {bad} is replaced by sample {substitute}: {problem}", flush=True)
                replaced = replaced or [(bad, problem.reason)]  # one word a place, also where a substitute is bad too
                chosen = substitute
        raise UserError(
            f"{SUBSTITUTES} samples in a row of {step.pool} cannot be read ({problem}); the shard set "
            f"{self.shards.root} is damaged: copy it again"
        )

    def _substitute(self, step: Step, index: int, attempt: int) -> int:
        """A keyed other sample of the pool; in blocks one of the same shard, since a cache may hold no other."""
        first, samples = 0, step.samples
        if self.schedule.settings.order == "blocks":
            shard, row = self.shards.locate(step.pool, index)
            first, samples = index - row, shard.samples
        return first + key("substitute", step.pool, index, attempt) % samples

    def _place_of(self, pool: str, index: int) -> str:
        shard, row = self.shards.locate(pool, index)
        return f"sample {index} of {pool} (shard {shard.name}, row {row})"

    def _key(self, pool: str, index: int) -> str:
        """The key of a sample that cannot be read, if at least its index can."""
        try:
            return f", key {self.shards.entry(*self.shards.locate(pool, index)).key}"
        except SampleError:
            return ""


def _no_board(doing: str) -> None:
    """Nobody watches a dataset that is read in the training process."""


class StepSampler(Sampler[tuple[int, int]]):
    """(step, micro-batch) from a starting step to the last: the whole data state is that one number."""

    def __init__(self, start: int, stop: int, accumulate: int) -> None:
        self.start, self.stop, self.accumulate = start, stop, accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.start, self.stop):
            for micro in range(self.accumulate):
                yield step, micro

    # no __len__: with one, Lightning would skip batches on a resume that the sampler has skipped already


def build_loader(
    dataset: BatchDataset,
    start: int,
    stop: int,
    workers: int,
    pin: bool,
    stall_seconds: float = DataConfig.stall_seconds,
    fail: Callable[[UserError], None] | None = None,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Watched:
    """Batches of the steps start..stop-1, in order.

    A worker that dies, or brings nothing for `stall_seconds`, is a UserError that names it and the sample it held:
    handed to `fail`, in whatever thread, or else raised by the iteration. `waiting` is entered while the next batch is
    not there yet.
    """
    board = Board(workers)
    loader = DataLoader(
        dataset,
        sampler=StepSampler(start, stop, dataset.place.accumulate),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        # neither CUDA nor the threads of this process survive a fork; a forkserver's workers outlive a killed rank
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=board.join if workers else None,
        persistent_workers=False,
    )
    batches = (stop - start) * dataset.place.accumulate
    return Watched(loader, board, batches, dataset.place.rank, stall_seconds, fail, waiting)
