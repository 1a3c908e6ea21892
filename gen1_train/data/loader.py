"""Turns the schedule and the shards into batches. Workers build whole micro-batches; the only state is the step."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_sharer
from types import TracebackType

from torch.utils.data import DataLoader, Dataset, Sampler

from gen1_train.batch import LATENT, Batch, Reason, Sample, SampleError, collate, latent_field
from gen1_train.data.schedule import Schedule, Step
from gen1_train.data.shards import ShardSet
from gen1_train.data.state import AUTO, ORDERS
from gen1_train.data.watch import IDLE, ActivityBoard, WatchedLoader
from gen1_train.errors import UserError, check_choice, check_not_negative, check_positive, check_share
from gen1_train.keyed import key
from gen1_train.system.console import EVERY_RANK, Console, current, print_traceback

STRUCTURE = "structure"  # the field of the maps that the structure's latents are of
MAX_BAD_SAMPLES = 4  # in a row, before the set is considered damaged; ours

logger = logging.getLogger(__name__)


@dataclass
class DataConfig:
    root: str | None = None  # a shard set frozen by gen1-data; may be a URL if there is a cache
    batch_clips: int = 1152  # global batch of a video step, in clips of the shortest length; images: x its frames
    image_ratio: float | None = None  # share of image steps; null: the stage's
    mix: str = "exact"  # image steps: exact, their share of every aligned block; or independent draws
    order: str = AUTO  # of samples: global, any of the pool next; blocks, a few shards at a time; or auto
    window: int = 8  # order=blocks: shards that a lane mixes at a time
    lanes: int = 8  # order=blocks: parts of the global batch that read shards of their own; a multiple of the nodes
    workers: int = 4  # loader processes per rank; 0 loads in the training process
    stall_seconds: float = 300.0  # after which a loader worker that delivers nothing counts as stalled
    cache: str | None = None  # order=blocks: a folder on each node's own disk, to which upcoming shards are copied
    cache_gigabytes: float = 200.0  # disk space of the cache on each node

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_choice("data.mix", self.mix, ("exact", "independent"))
        check_choice("data.order", self.order, (AUTO, *ORDERS))
        check_positive(
            data__batch_clips=self.batch_clips,
            data__window=self.window,
            data__lanes=self.lanes,
            data__stall_seconds=self.stall_seconds,
            data__cache_gigabytes=self.cache_gigabytes,
        )
        check_share(data__image_ratio=self.image_ratio)
        check_not_negative(data__workers=self.workers)
        if self.cache is not None and self.order == "global":
            raise UserError("data.cache needs data.order=blocks: data.order=global reads from all shards at any time")


@dataclass(frozen=True)
class BatchPartition:
    """The part of every global batch that one process reads."""

    rank: int
    world: int  # processes that share the global batch
    accumulate: int  # micro-batches per optimizer step and rank

    def slots(self, size: int, micro: int) -> range:
        """Returns the slots of a global batch of `size` that this rank reads as micro-batch `micro` of a step.

        The slots of a rank, and of a node, are adjacent. With order=blocks, a node therefore reads few shards.
        """
        each = size // (self.world * self.accumulate)
        start = (self.rank * self.accumulate + micro) * each
        return range(start, start + each)


class BatchDataset(Dataset[Batch]):
    """Maps (step, micro-batch) to the Batch that this rank reads.

    `finish` completes each batch, in the worker process. `level` gives the t_s of a (step, slot): of all structure
    latents of a sample, only that one is read. `drops`: whether the structure of a (step, slot) is read, too, because
    it loses planes and has to be encoded. `report_activity` is called with a description of each operation before
    it begins; see watch.ActivityBoard.
    """

    def __init__(
        self,
        shards: ShardSet,
        schedule: Schedule,
        partition: BatchPartition,
        fields: tuple[str, ...],
        finish: Callable[[Batch], Batch] | None = None,
        level: Callable[[int, int], int] | None = None,
        drops: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.shards = shards
        self.schedule = schedule
        self.partition = partition
        self.fields = fields
        self.finish = finish
        self.level = level
        self.drops = drops
        self.report_activity: Callable[[str], None] = _ignore_activity

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        number, micro = position
        step = self.schedule.at(number)
        slots = list(self.partition.slots(step.size, micro))
        samples: list[Sample] = []
        replaced: list[tuple[str, Reason]] = []
        for slot in slots:
            index = self.schedule.sample(step, slot)
            fields = self.fields if self.level is None else at_level(self.fields, self.level(number, slot))
            if self.drops is not None and STRUCTURE not in fields and self.drops(number, slot):
                fields = (*fields, STRUCTURE)
            sample, bad = self._read(step, index, fields, f"for step {number}, slot {slot}")
            samples.append(sample)
            replaced += bad
        self.report_activity(f"stacking the samples of step {number}")
        batch = collate(step.kind, number, slots, samples)
        batch.replaced_samples = replaced
        if self.finish is not None:
            batch = self.finish(batch)
        self.report_activity(IDLE)
        return batch

    def _read(
        self, step: Step, index: int, fields: tuple[str, ...], purpose: str
    ) -> tuple[Sample, list[tuple[str, Reason]]]:
        """Reads a sample. Replaces a bad one by a keyed other sample of its pool, with a warning.

        Returns the sample, and the bad one that it replaces, if any, as in Batch.replaced_samples.
        """
        chosen = index
        replaced: list[tuple[str, Reason]] = []
        for attempt in range(1, MAX_BAD_SAMPLES + 1):
            activity = f"reading {self._describe(step.pool, chosen)} {purpose}"
            self.report_activity(activity)
            try:
                return self.shards.read(step.pool, chosen, fields), replaced
            except UserError:
                raise
            except SampleError as error:
                problem = error
            except Exception as error:
                error.add_note(f"gen1-train: raised while {activity}")
                raise
            if attempt < MAX_BAD_SAMPLES:
                substitute = self._substitute(step, index, attempt)
                bad = f"{self._describe(step.pool, chosen)}{self._key(step.pool, chosen)}"
                logger.warning(f"{bad} is replaced by sample {substitute}: {problem}", extra=EVERY_RANK)
                replaced = replaced or [(bad, problem.reason)]  # one entry per slot, even if a substitute is bad too
                chosen = substitute
        raise UserError(
            f"{MAX_BAD_SAMPLES} samples of {step.pool} in a row cannot be read ({problem}): the shard set "
            f"{self.shards.root} is damaged, copy it again"
        )

    def _substitute(self, step: Step, index: int, attempt: int) -> int:
        """Chooses another sample of the pool; with order=blocks from the same shard, as a cache may hold no other."""
        first = 0
        samples = step.samples
        if self.schedule.settings.order == "blocks":
            shard, row = self.shards.locate(step.pool, index)
            first = index - row
            samples = shard.samples
        return first + key("substitute", step.pool, index, attempt) % samples

    def _describe(self, pool: str, index: int) -> str:
        shard, row = self.shards.locate(pool, index)
        return f"sample {index} of {pool} (shard {shard.name}, row {row})"

    def _key(self, pool: str, index: int) -> str:
        """The key of a bad sample, if its row of the index can be read."""
        try:
            return f", key {self.shards.entry(*self.shards.locate(pool, index)).key}"
        except SampleError:
            return ""


def at_level(fields: tuple[str, ...], level: int) -> tuple[str, ...]:
    """Returns the fields with the structure's latent at t_s = level instead of 0."""
    return tuple(latent_field(level) if name == LATENT else name for name in fields)


def _ignore_activity(activity: str) -> None:
    """Does nothing: no one watches a dataset that is read in the training process."""


class StepSampler(Sampler[tuple[int, int]]):
    """Yields (step, micro-batch) from a start step to the last: the step is the whole state of the data."""

    def __init__(self, start: int, stop: int, accumulate: int) -> None:
        self.start = start
        self.stop = stop
        self.accumulate = accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.start, self.stop):
            for micro in range(self.accumulate):
                yield step, micro

    # There is no __len__: with one, Lightning would skip batches on a resume that the sampler has already skipped.


def build_loader(
    dataset: BatchDataset,
    start: int,
    stop: int,
    workers: int,
    pin: bool,
    stall_seconds: float = DataConfig.stall_seconds,
    on_failure: Callable[[UserError], None] | None = None,
    while_waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> WatchedLoader:
    """Builds a loader for the batches of steps `start` to `stop - 1`, in order.

    A worker that dies, or delivers nothing for `stall_seconds`, is reported as a UserError that names the worker and
    the sample that it was reading. The error is passed to `on_failure`, from any thread; without it, the iteration
    raises the error. `while_waiting` is entered while the next batch is not ready.
    """
    board = ActivityBoard(workers)
    loader = DataLoader(
        dataset,
        sampler=StepSampler(start, stop, dataset.partition.accumulate),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        # CUDA and the threads of this process do not survive a fork; the workers of a forkserver outlive a killed rank
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=partial(_start_worker, board, current()) if workers else None,
        persistent_workers=False,
    )
    return WatchedLoader(
        loader,
        board,
        batches=(stop - start) * dataset.partition.accumulate,
        rank=dataset.partition.rank,
        stall_seconds=stall_seconds,
        on_failure=on_failure,
        while_waiting=while_waiting,
    )


def _start_worker(board: ActivityBoard, console: Console | None, worker: int) -> None:
    """Runs first in each worker process."""
    if console is not None:
        console.open()
        sys.excepthook = print_unless_hung_up
    board.join(worker)


def print_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of a bug. It is none if a rank that a signal ends does not fetch a batch to the end: the
    thread that hands the files of shared memory to the rank then finds the connection closed.
    """
    in_sharer = trace is not None and trace.tb_frame.f_code.co_filename == resource_sharer.__file__
    if not (in_sharer and issubclass(kind, ConnectionError | EOFError)):
        print_traceback(kind, error, trace)
