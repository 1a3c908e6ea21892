"""The process that copies upcoming shards to a node's own disk; `gen1_train.data.cache` starts it.

It looks at the steps ahead of the trainer's and at the shards that each of them reads. Missing shards are copied in the
order of first need. Shards that no step from the trainer's to the last known one reads may be evicted, and are only
when room is needed. It looks further ahead only when no known shard is missing, so a shard is evicted only for one that
is needed earlier.
"""

import errno
import logging
import os
import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import ceil
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Protocol, TypeVar

from gen1_train.data.index import check_index, index_path
from gen1_train.data.manifest import Shard
from gen1_train.data.shards import PREFETCH_ERROR
from gen1_train.errors import UserError
from gen1_train.system.console import EVERY_RANK, Console
from gen1_train.system.files import sync, write_atomically
from gen1_train.system.remote import copy_file, join, read_bytes, reason_of, without_secrets

LOOK_AHEAD = 2000  # steps ahead of the trainer's, at most, even if the budget has room for more; ours
POLL_SECONDS = 0.1  # between checks of the trainer's step; ours
PAUSES = (1.0, 4.0, 16.0)  # seconds before each new attempt to copy a file; ours

StepShards = Callable[[int], list[Shard]]  # a step -> the shards that this node reads in it, in order, each once
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class SharedInt(Protocol):
    """An integer in memory that two processes share."""

    value: int


@dataclass(frozen=True)
class PrefetchJob:
    """Everything that the process has to know; sent to it when it starts."""

    root: str  # of the frozen set: a folder or a URL
    folder: Path  # of the partial copy of the set on this node's disk
    step_shards: StepShards
    start: int
    stop: int
    budget: int  # bytes of the files in FOLDER/shards
    present: dict[str, int]  # bytes of the complete shards on the disk, in the order of eviction
    copies: int  # at the same time
    pauses: tuple[float, ...]
    console: Console | None = None  # of the process that starts this one


class CopyPlan:
    """Decides which shard to copy next, and which ones may be evicted. It does not touch any file."""

    def __init__(self, step_shards: StepShards, start: int, stop: int, budget: int, present: dict[str, int]) -> None:
        self.step_shards = step_shards
        self.stop = stop
        self.budget = budget
        self.step = start  # the trainer's
        self.horizon = start  # the plan knows the shards of the steps from `step` to the one before this
        self._steps: deque[list[Shard]] = deque()  # the shards of each of these steps
        self._uses: Counter[str] = Counter()  # by how many of them each shard is read
        self._missing: dict[str, Shard] = {}  # those of them that are neither present nor being copied, by first need
        self._held = dict(present)  # bytes of the shards that are present or being copied
        self._idle = dict.fromkeys(present)  # those of them that no known step reads, longest unneeded first
        self._in_flight: set[str] = set()  # those of them that are being copied

    @property
    def used(self) -> int:
        """Bytes of the shards that are present or being copied."""
        return sum(self._held.values())

    @property
    def next_missing(self) -> Shard | None:
        """The next shard to copy."""
        return next(iter(self._missing.values()), None)

    def look_ahead(self) -> bool:
        """Looks one step further, unless that is far enough. Raises UserError for a step that exceeds the budget."""
        if self.horizon >= min(self.stop, self.step + LOOK_AHEAD):
            return False
        shards = shards_within_budget(self.step_shards, self.horizon, self.budget)
        for shard in shards:
            self._uses[shard.name] += 1
            self._idle.pop(shard.name, None)
            if shard.name not in self._held:
                self._missing.setdefault(shard.name, shard)
        self._steps.append(shards)
        self.horizon += 1
        return True

    def advance(self, step: int) -> None:
        """Notes that the trainer is at `step`: shards that only earlier steps read are not needed any more."""
        while self.step < step:
            for shard in self._steps.popleft() if self._steps else ():
                self._uses[shard.name] -= 1
                if self._uses[shard.name] == 0:
                    del self._uses[shard.name]
                    self._missing.pop(shard.name, None)
                    if shard.name in self._held:
                        self._idle[shard.name] = None
            self.step += 1
        self.horizon = max(self.horizon, self.step)

    def begin_copy(self, shard: Shard, size: int) -> list[str] | None:
        """Reserves `size` bytes for a missing shard and returns the shards to evict first, or None if it has to wait.

        Raises UserError if there will never be enough room.
        """
        free = self.budget - self.used
        evicted = []
        for name in self._idle:
            if free >= size:
                break
            if name not in self._in_flight:
                evicted.append(name)
                free += self._held[name]
        if free < size:
            if self.horizon == self.step + 1 and not self._in_flight:  # the trainer's step reads all that is held
                raise budget_error(self.step, len(self._steps[0]), self.budget - free + size, self.budget)
            return None
        for name in evicted:
            del self._held[name]
            del self._idle[name]
        self._held[shard.name] = size
        self._in_flight.add(shard.name)
        del self._missing[shard.name]
        return evicted

    def end_copy(self, name: str) -> int:
        """Notes that a shard has arrived, and returns its bytes."""
        self._in_flight.remove(name)
        return self._held[name]


def shards_within_budget(step_shards: StepShards, step: int, budget: int) -> list[Shard]:
    """Returns the shards that a step reads. Raises UserError if they alone exceed the budget."""
    shards = step_shards(step)
    if (needed := sum(shard.bytes for shard in shards)) > budget:
        raise budget_error(step, len(shards), needed, budget)
    return shards


def budget_error(step: int, shards: int, needed: int, budget: int) -> UserError:
    """Makes the error for a step whose shards alone exceed the budget."""
    return UserError(
        f"step {step} reads {shards} shards ({needed / 1e9:.3g} GB) on one node, more than "
        f"data.cache_gigabytes={budget / 1e9:.3g} can hold: set data.cache_gigabytes={ceil(needed / 1e8) / 10} or "
        "more, or lower data.window or data.lanes"
    )


class Copier:
    """Executes the plan, several copies at a time. Files arrive whole: hidden name, check, fsync, rename."""

    def __init__(self, job: PrefetchJob, step: SharedInt, copied: SharedInt) -> None:
        """`step`, the trainer's, is read; `copied`, the bytes of the shards that have arrived, is written."""
        self.job = job
        self.step = step
        self.copied = copied
        self.plan = CopyPlan(job.step_shards, job.start, job.stop, job.budget, job.present)
        self.in_flight: dict[Future[None], str] = {}  # running copies -> the shard's name
        self._threads = ThreadPoolExecutor(job.copies)
        self._index = ("", b"")  # name and index of the next shard, kept while it waits for room

    def run_once(self) -> bool:
        """Does one thing. Returns False if there is nothing to do until a copy ends or the trainer advances.

        Raises UserError if a file cannot be copied, or the budget is too small.
        """
        for copy in [copy for copy in self.in_flight if copy.done()]:
            name = self.in_flight.pop(copy)
            copy.result()
            self.copied.value += self.plan.end_copy(name)
        self.plan.advance(self.step.value)
        if len(self.in_flight) == self.job.copies:
            return False
        shard = self.plan.next_missing
        return self.plan.look_ahead() if shard is None else self._begin(shard)

    def wait(self) -> None:
        """Waits until a copy ends or it is time to check the trainer's step."""
        if self.in_flight:
            wait(self.in_flight, POLL_SECONDS, FIRST_COMPLETED)
        else:
            time.sleep(POLL_SECONDS)

    def _begin(self, shard: Shard) -> bool:
        """Starts to copy a shard if there is room. The index is written first, because readers wait for the tar."""
        if self._index[0] != shard.name:
            self._index = (shard.name, self._read_index(shard))
        index = self._index[1]
        evicted = self.plan.begin_copy(shard, shard.bytes + len(index))
        if evicted is None:
            return False
        for name in evicted:
            self._tar(name).unlink(missing_ok=True)
            index_path(self._tar(name)).unlink(missing_ok=True)
        self._retry(shard.name, lambda: write_atomically(index_path(self._tar(shard.name)), index))
        self.in_flight[self._threads.submit(self._copy, shard)] = shard.name
        return True

    def _tar(self, name: str) -> Path:
        return self.job.folder / "shards" / name

    def _source(self, name: str) -> str:
        return join(self.job.root, f"shards/{name}")

    def _read_index(self, shard: Shard) -> bytes:
        name = index_path(Path(shard.name)).name

        def read() -> bytes:
            data = read_bytes(self._source(name))
            check_index(data, shard.crc32)
            return data

        return self._retry(name, read)

    def _copy(self, shard: Shard) -> None:
        target = self._tar(shard.name)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")

        def copy() -> None:
            try:
                copy_file(self._source(shard.name), temporary, most=shard.bytes)
                if (size := temporary.stat().st_size) != shard.bytes:
                    raise ValueError(f"it arrived with {size} bytes instead of {shard.bytes}")
                sync(temporary)
                os.replace(temporary, target)
                sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

        self._retry(shard.name, copy)

    def _retry(self, name: str, action: Callable[[], Result]) -> Result:
        disk_full = f"the disk of {self.job.folder} is full: free some of it, or lower data.cache_gigabytes"
        return retry(without_secrets(self._source(name)), action, self.job.pauses, disk_full)


def retry(what: str, action: Callable[[], Result], pauses: tuple[float, ...], disk_full: str = "") -> Result:
    """Returns the result of `action`, which is tried again after each pause.

    Raises UserError that names `what` and the reason if all attempts fail. A UserError of `action` is raised at once,
    and so is the message `disk_full`, if given, when a disk is full.
    """
    for pause in (*pauses, None):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # each file system has errors of its own, and not all are OSErrors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and disk_full:
                raise UserError(disk_full) from error
            reason = reason_of(error)
            if pause is None:
                attempts = f", tried {len(pauses) + 1} times" if pauses else ""
                raise UserError(
                    f"{what} cannot be copied ({reason}{attempts}): fix data.root, then run the same command again"
                ) from error
        logger.warning(f"copying {what} is retried in {pause:g} s: {reason}", extra=EVERY_RANK)
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def run_prefetcher(job: PrefetchJob, step: SharedInt, copied: SharedInt) -> None:
    """Runs the process until it is killed, its parent is gone, or there is an error.

    An error is written to FOLDER/prefetch.error, in one line, and the exit code is 1.
    """
    if job.console is not None:
        job.console.open()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the trainer, which may still have to save
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        copier = Copier(job, step, copied)
        while True:
            if not copier.run_once():
                copier.wait()
    except UserError as error:
        line = str(error)
    except Exception as error:
        logger.exception("the prefetcher failed", extra=EVERY_RANK)
        line = f"the prefetcher of {job.folder} failed ({type(error).__name__}: {reason_of(error)})"
    write_atomically(job.folder / PREFETCH_ERROR, line.encode())
    os._exit(1)  # a normal exit would wait for the other copies, possibly for minutes


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
