"""Loader workers that die or stall: which one it was, and which sample it held, in one line.

Of a worker that is killed, for memory most likely, torch says no more than a pid; one that hangs on a dead file system
makes this rank wait for ever, and all others with it, in a collective. So each worker writes what it does on a board in
shared memory, and a thread of the training process looks at the workers. It needs no main thread: that one may be stuck
in a collective itself.
"""

import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from weakref import WeakSet

from torch.utils.data import DataLoader, get_worker_info

from gen1_train.batch import Batch
from gen1_train.errors import UserError
from gen1_train.stop import deaf

TICK = 0.5  # seconds between two looks at the workers; a death is seen at once
START_SECONDS = 60.0  # that a worker may need before it can be called stalled: it imports torch first
IDLE = "waiting for work"

MENDS = {  # by the signal that killed a worker
    signal.SIGKILL: "out of memory? lower data.workers, or give the job more memory",
    signal.SIGBUS: "is /dev/shm full? give it more room, or lower data.workers",
}
OTHER_MEND = "its own lines above say more; start again to go on from the last checkpoint"


class Board:
    """What each worker is doing, in memory that all of them share: writing is no system call, and outlives them."""

    _place = struct.Struct("<dH500s")  # since when (the clock of time.monotonic), length, text

    def __init__(self, workers: int) -> None:
        self._memory = get_context("spawn").RawArray("c", workers * self._place.size)

    def write(self, worker: int, doing: str) -> None:
        text = doing.encode()[:500]
        self._place.pack_into(self._memory, worker * self._place.size, time.monotonic(), len(text), text)

    def read(self, worker: int) -> tuple[str, float]:
        """What a worker is doing, and since when; an empty text where it has not started yet."""
        since, length, text = self._place.unpack_from(self._memory, worker * self._place.size)
        return text[:length].decode(errors="replace"), since

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))

    def join(self, worker: int) -> None:
        """What a worker does first: its dataset notes on this board from now on what it is doing."""
        info = get_worker_info()
        assert info is not None
        info.dataset.note = partial(self.write, worker)  # type: ignore[attr-defined]
        self.write(worker, IDLE)


class Watch:
    """Looks at the workers of one loader, in a thread, until one fails or it is stopped."""

    def __init__(
        self,
        board: Board,
        workers: Sequence[BaseProcess],
        rank: int,
        deadline: float,
        fail: Callable[[UserError], None],
    ) -> None:
        """`deadline`: seconds that the main thread may wait for a batch; `fail` is called once, in any thread."""
        self.board, self.workers, self.rank, self.deadline, self.fail = board, workers, rank, deadline, fail
        self._lock = threading.Lock()
        self._stopped = False
        self._failure: UserError | None = None
        self._awaited: int | None = None  # the number of the batch that the main thread waits for
        self._seen: tuple[int | None, bool] = (None, False)  # of `_awaited`, and of whether its worker had started
        self._waited = 0.0  # seconds since `_seen` is so

    def start(self) -> None:
        threading.Thread(target=self._run, name="loader-watch", daemon=True).start()

    def expect(self, batch: int | None) -> None:
        """The main thread begins to wait for a batch, by its number; None: it waits no more."""
        self._awaited = batch

    def failure(self) -> UserError | None:
        """The line about a worker that died or stalled, if one did. A stalled one is killed: nothing else ends it."""
        with self._lock:
            if self._failure is None and not self._stopped and (line := self._dead() or self._stalled()):
                self._failure = UserError(line)
                self.fail(self._failure)
            return self._failure

    def stop(self) -> None:
        """From now on workers may end as they like."""
        self._stopped = True

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped and self.failure() is None and (alive := self._alive()):
            connection.wait([worker.sentinel for worker in alive], TICK)
            now = time.monotonic()
            self._count(min(now - last, 2 * TICK))  # no more: this process may have been suspended with its workers
            last = now

    def _count(self, seconds: float) -> None:
        """Adds to the time for which the main thread has waited for one batch of a worker that has started, or not."""
        awaited = self._awaited
        seen = awaited, awaited is not None and bool(self._of(awaited)[1])
        self._waited = self._waited + seconds if seen == self._seen else 0.0
        self._seen = seen

    def _of(self, batch: int) -> tuple[int, str, float]:
        """The worker that owes a batch (torch hands them out in turn), what it is doing, and since when."""
        worker = batch % len(self.workers)
        return worker, *self.board.read(worker)

    def _alive(self) -> list[BaseProcess]:
        """The workers that have not ended well; one that failed since `failure` looked is not waited for."""
        with self._lock:
            return [worker for worker in self.workers if worker.exitcode != 0]

    def _dead(self) -> str | None:
        for number, worker in enumerate(self.workers):
            if code := worker.exitcode:  # under the lock: who asks while another thread asks is told None
                doing = self.board.read(number)[0] or "starting"
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"{self._name(number)} {how} while {doing}: {MENDS.get(-code, OTHER_MEND)}"  # type: ignore[call-overload]
        return None

    def _stalled(self) -> str | None:
        batch, started = self._seen
        if batch is None or self._waited < self.deadline + (0 if started else START_SECONDS):
            return None
        number, doing, since = self._of(batch)
        has_been = f"has been {doing} for {time.monotonic() - since:.0f} s" if doing else "has not started yet"
        self.workers[number].kill()
        return (
            f"{self._name(number)} has brought nothing for {self._waited:.0f} s and {has_been}: is the file system of "
            "data.root alive? if it is only slow, raise data.stall_seconds"
        )

    def _name(self, number: int) -> str:
        return f"loader worker {number} of rank {self.rank} (pid {self.workers[number].pid})"


class Watched:
    """The batches of a DataLoader, and a UserError where a worker dies or stalls; `workers=0` has none to watch."""

    def __init__(
        self,
        loader: DataLoader[Batch],
        board: Board,
        batches: int,
        rank: int,
        deadline: float,
        fail: Callable[[UserError], None] | None,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """`batches`: how many the loader has. `fail`: see Watch; without it the error is raised by the iteration.

        `waiting` is entered while the next batch is not there yet.
        """
        self.loader, self.board, self.batches, self.rank, self.deadline = loader, board, batches, rank, deadline
        self.fail, self.waiting = fail or _leave_it, waiting

    def __iter__(self) -> Iterator[Batch]:
        self.board.clear()
        with deaf(), _own_sigchld():
            iterator = iter(self.loader)
        if self.loader.num_workers == 0:
            for _ in range(self.batches):
                yield self._next(iterator)
            return
        workers: list[BaseProcess] = iterator._workers  # type: ignore[attr-defined]
        _started.update(workers)
        watch = Watch(self.board, workers, self.rank, self.deadline, self.fail)
        watch.start()
        try:
            for number in range(self.batches):
                watch.expect(number)
                batch = self._next(iterator)
                watch.expect(None)
                if number == self.batches - 1:
                    watch.stop()  # the loader now ends its workers, if need be with a signal
                yield batch
        except RuntimeError as error:  # torch's, which looks at the workers every 5 s while it waits
            if failure := watch.failure():
                raise failure from error
            raise
        finally:
            watch.stop()

    def _next(self, iterator: Iterator[Batch]) -> Batch:
        try:
            with self.waiting():
                return next(iterator)
        except UserError as error:  # torch puts the worker's traceback before the line
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


_started: WeakSet[BaseProcess] = WeakSet()


def _kill_left() -> None:
    for worker in _started:
        if worker.is_alive():
            worker.kill()


# A loader whose iteration has not come to its end, for a traceback holds it, leaves workers to the end of this process.
# There multiprocessing sends them SIGTERM, which they do not hear (see `deaf`), and waits; this comes before.
Finalize(None, _kill_left, exitpriority=10)


@contextmanager
def _own_sigchld() -> Iterator[None]:
    """The handler of SIGCHLD stays as it is in here.

    torch's, which a DataLoader sets, raises an error in the midst of whatever the main thread does when a worker dies,
    the telling of that death included. A Watch sees it as soon.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nor does torch set one there
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:  # one that Python did not set cannot be set again by it
            signal.signal(signal.SIGCHLD, before)


def _leave_it(error: UserError) -> None:
    """The iteration raises it."""
