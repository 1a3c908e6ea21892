"""The process that copies coming shards to a node's own disk; `gen1_train.data.cache` starts it.

It walks the steps ahead of the trainer and asks of each which shards it reads. What is missing is copied in the order
of first need; what no step between the trainer's and the last one walked reads may be evicted, and only when room is
needed. It walks on only when nothing known is missing, so a shard is evicted at most for one that is needed earlier.
"""

import errno
import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import ceil
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Protocol, TypeVar

from gen1_train.data.index import check_index, index_path
from gen1_train.data.shards import PREFETCH_ERROR, Shard
from gen1_train.errors import UserError
from gen1_train.files import sync, write_atomically
from gen1_train.remote import copy_file, join, read_bytes, reason_of, without_secrets

AHEAD = 2000  # steps that are walked before the trainer at most, where the budget would take more; ours
POLL = 0.1  # seconds from one look at the trainer's step to the next; ours
PAUSES = (1.0, 4.0, 16.0)  # seconds before each new try of a file that could not be copied; ours

Needs = Callable[[int], list[Shard]]  # a step -> the shards that this node reads in it, in order, each once
Result = TypeVar("Result")


class Number(Protocol):
    """An integer in memory that two processes share."""

    value: int


@dataclass(frozen=True)
class Job:
    """All that the process has to know, as it is sent to it."""

    root: str  # of the frozen set: a folder or a URL
    folder: Path  # of the partly filled set on this node's disk
    needs: Needs
    start: int
    stop: int
    budget: int  # bytes of the files in FOLDER/shards
    present: dict[str, int]  # bytes of the shards that are whole on the disk, the first to be evicted first
    copies: int  # at the same time
    pauses: tuple[float, ...]


class Plan:
    """Which shard comes next, and which may go. Bookkeeping only: it touches no file."""

    def __init__(self, needs: Needs, start: int, stop: int, budget: int, present: dict[str, int]) -> None:
        self.needs, self.stop, self.budget = needs, stop, budget
        self.step = start  # the trainer's
        self.horizon = start  # the steps from `step` to the one before this are walked
        self._steps: deque[list[Shard]] = deque()  # what each of them reads
        self._uses: Counter[str] = Counter()  # by how many of them each shard is read
        self._missing: dict[str, Shard] = {}  # what they read and is neither there nor on its way, by first need
        self._held = dict(present)  # bytes of what is there or on its way
        self._idle = dict.fromkeys(present)  # what of that no walked step reads, longest unneeded first
        self._coming: set[str] = set()  # what of that is on its way

    @property
    def used(self) -> int:
        """Bytes of what is there or on its way."""
        return sum(self._held.values())

    @property
    def missing(self) -> Shard | None:
        """The next one to copy."""
        return next(iter(self._missing.values()), None)

    def walk(self) -> bool:
        """Looks one step further; False if that is far enough. Raises UserError for a step beyond the budget."""
        if self.horizon >= min(self.stop, self.step + AHEAD):
            return False
        shards = affordable(self.needs, self.horizon, self.budget)
        for shard in shards:
            self._uses[shard.name] += 1
            self._idle.pop(shard.name, None)
            if shard.name not in self._held:
                self._missing.setdefault(shard.name, shard)
        self._steps.append(shards)
        self.horizon += 1
        return True

    def advance(self, step: int) -> None:
        """The trainer is at `step` now: what only earlier ones have read is needed no more."""
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

    def begin(self, shard: Shard, size: int) -> list[str] | None:
        """Takes `size` bytes for a missing shard and returns what has to be evicted first; None: no room yet.

        Raises UserError when there will never be room.
        """
        free = self.budget - self.used
        evicted = []
        for name in self._idle:
            if free >= size:
                break
            if name not in self._coming:
                evicted.append(name)
                free += self._held[name]
        if free < size:
            if self.horizon == self.step + 1 and not self._coming:  # all that is held is read by the trainer's step
                raise too_small(self.step, len(self._steps[0]), self.budget - free + size, self.budget)
            return None
        for name in evicted:
            del self._held[name], self._idle[name]
        self._held[shard.name] = size
        self._coming.add(shard.name)
        del self._missing[shard.name]
        return evicted

    def arrived(self, name: str) -> int:
        """A shard on its way is there; its bytes."""
        self._coming.remove(name)
        return self._held[name]


def affordable(needs: Needs, step: int, budget: int) -> list[Shard]:
    """The shards that a step reads. Raises UserError when they alone are larger than the budget."""
    shards = needs(step)
    if (wanted := sum(shard.bytes for shard in shards)) > budget:
        raise too_small(step, len(shards), wanted, budget)
    return shards


def too_small(step: int, shards: int, wanted: int, budget: int) -> UserError:
    """The error for a step whose shards alone do not fit the budget."""
    return UserError(
        f"step {step} reads {shards} shards of {wanted / 1e9:.3g} GB on one node, more than "
        f"data.cache_gigabytes={budget / 1e9:.3g} can hold: set data.cache_gigabytes={ceil(wanted / 1e8) / 10} or "
        "more, or lower data.window or data.lanes"
    )


class Copier:
    """Does what the plan says, several copies at a time. Every file comes whole: hidden name, check, fsync, rename."""

    def __init__(self, job: Job, step: Number, copied: Number) -> None:
        """`step` is read: the trainer's; `copied` is written: bytes of the shards that have come so far."""
        self.job, self.step, self.copied = job, step, copied
        self.plan = Plan(job.needs, job.start, job.stop, job.budget, job.present)
        self._threads = ThreadPoolExecutor(job.copies)
        self.coming: dict[Future[None], str] = {}  # the copies on their way, and of which shard
        self._index = ("", b"")  # of the shard that comes next: its name and its index, which waits for room

    def turn(self) -> bool:
        """Does one thing; False when there is nothing to do until a copy ends or the trainer goes on.

        Raises UserError when a file cannot be copied, or the budget is too small.
        """
        for copy in [copy for copy in self.coming if copy.done()]:
            name = self.coming.pop(copy)
            copy.result()
            self.copied.value += self.plan.arrived(name)
        self.plan.advance(self.step.value)
        if len(self.coming) == self.job.copies:
            return False
        shard = self.plan.missing
        return self.plan.walk() if shard is None else self._begin(shard)

    def wait(self) -> None:
        """Until a copy ends, and no longer than until the next look at the trainer's step."""
        if self.coming:
            wait(self.coming, POLL, FIRST_COMPLETED)
        else:
            time.sleep(POLL)

    def _begin(self, shard: Shard) -> bool:
        """Starts the copy of a shard if there is room. The index is there before the tar: readers wait for the tar."""
        if self._index[0] != shard.name:
            self._index = (shard.name, self._read_index(shard))
        index = self._index[1]
        evicted = self.plan.begin(shard, shard.bytes + len(index))
        if evicted is None:
            return False
        for name in evicted:
            self._tar(name).unlink(missing_ok=True)
            index_path(self._tar(name)).unlink(missing_ok=True)
        self._stubbornly(shard.name, lambda: write_atomically(index_path(self._tar(shard.name)), index))
        self.coming[self._threads.submit(self._copy, shard)] = shard.name
        return True

    def _tar(self, name: str) -> Path:
        return self.job.folder / "shards" / name

    def _place(self, name: str) -> str:
        return join(self.job.root, f"shards/{name}")

    def _read_index(self, shard: Shard) -> bytes:
        name = index_path(Path(shard.name)).name

        def read() -> bytes:
            data = read_bytes(self._place(name))
            check_index(data, shard.crc32)
            return data

        return self._stubbornly(name, read)

    def _copy(self, shard: Shard) -> None:
        target = self._tar(shard.name)
        temporary = target.with_name(f".{target.name}.tmp")

        def copy() -> None:
            try:
                copy_file(self._place(shard.name), temporary)
                if (found := temporary.stat().st_size) != shard.bytes:
                    raise ValueError(f"it came with {found} bytes and should have {shard.bytes}")
                sync(temporary)
                os.replace(temporary, target)
                sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

        self._stubbornly(shard.name, copy)

    def _stubbornly(self, name: str, do: Callable[[], Result]) -> Result:
        full = f"the disk of {self.job.folder} is full: free some of it, or lower data.cache_gigabytes"
        return stubbornly(without_secrets(self._place(name)), do, self.job.pauses, full)


def stubbornly(what: str, do: Callable[[], Result], pauses: tuple[float, ...], full: str = "") -> Result:
    """What `do` returns, which is tried again after each pause. Raises UserError that names `what` and the reason.

    A UserError of `do` is raised at once, and a full disk too, with `full` as its line.
    """
    for pause in (*pauses, None):
        try:
            return do()
        except UserError:
            raise
        except Exception as error:  # each file system has errors of its own, and not all are OSErrors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and full:
                raise UserError(full) from error
            reason = reason_of(error)
            if pause is None:
                tries = f", tried {len(pauses) + 1} times" if pauses else ""
                raise UserError(
                    f"{what} cannot be copied ({reason}{tries}): mend data.root, then run the same command again"
                ) from error
        print(f"gen1-train: warning: {what} is tried again in {pause:g} s: {reason}", flush=True)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def serve(job: Job, step: Number, copied: Number) -> None:
    """The whole life of the process: until it is killed, its parent is gone, or something cannot be mended.

    The last writes its line to FOLDER/prefetch.error, and the exit code is 1.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the trainer, which may still want to save
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        copier = Copier(job, step, copied)
        while True:
            if not copier.turn():
                copier.wait()
    except UserError as error:
        line = str(error)
    except Exception as error:
        traceback.print_exc()
        line = f"the prefetcher of {job.folder} failed ({type(error).__name__}: {reason_of(error)})"
    write_atomically(job.folder / PREFETCH_ERROR, line.encode())
    os._exit(1)  # the other copies may take minutes to see that nobody wants them


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
