"""Detects loader workers that die or stall, and reports which one it was and which sample it was reading.

torch reports no more than the pid of a worker that is killed, most likely for memory. A worker that hangs on a dead
file system blocks its rank forever, and all other ranks with it, in a collective. Each worker therefore writes its
current activity to a board in shared memory, and a thread of the training process watches the workers. This works
without the main thread, which may be stuck in a collective itself.
"""

import signal
import struct
import sys
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
from gen1_train.system.signals import signals_blocked

POLL_SECONDS = 0.5  # between checks for a stall; a death is noticed at once
START_SECONDS = 60.0  # extra time before a new worker counts as stalled, because it has to import torch
DEATH_SECONDS = 5.0  # a worker that dies closes its connections before its end can be seen
HANG_UPS = ConnectionError, EOFError, FileNotFoundError  # a connection to a worker that has died
IDLE = "waiting for work"

REMEDIES = {  # by the signal that killed a worker
    signal.SIGKILL: "out of memory? lower data.workers, or give the job more memory",
    signal.SIGBUS: "is /dev/shm full? enlarge it, or lower data.workers",
}
OTHER_REMEDY = "see its own output above; run the same command again to resume from the last checkpoint"


class ActivityBoard:
    """The current activity of each worker, in shared memory. Writing needs no system call, and outlives the worker."""

    _record = struct.Struct("<dH500s")  # start (time.monotonic), length, text

    def __init__(self, workers: int) -> None:
        self._memory = get_context("spawn").RawArray("c", workers * self._record.size)

    def write(self, worker: int, activity: str) -> None:
        text = activity.encode()[:500]
        self._record.pack_into(self._memory, worker * self._record.size, time.monotonic(), len(text), text)

    def read(self, worker: int) -> tuple[str, float]:
        """Returns a worker's activity and when it began. The activity is empty if the worker has not started yet."""
        since, length, text = self._record.unpack_from(self._memory, worker * self._record.size)
        return text[:length].decode(errors="replace"), since

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))

    def join(self, worker: int) -> None:
        """Makes the dataset of this worker process report its activity here. Called in the worker."""
        info = get_worker_info()
        assert info is not None
        info.dataset.report_activity = partial(self.write, worker)  # type: ignore[attr-defined]
        self.write(worker, IDLE)


class WorkerWatch:
    """Watches the workers of one loader in a thread, until one fails or the watch is stopped."""

    def __init__(
        self,
        board: ActivityBoard,
        workers: Sequence[BaseProcess],
        rank: int,
        stall_seconds: float,
        on_failure: Callable[[UserError], None],
    ) -> None:
        """`stall_seconds`: how long the main thread may wait for a batch. `on_failure`: called once, in any thread."""
        self.board = board
        self.workers = workers
        self.rank = rank
        self.stall_seconds = stall_seconds
        self.on_failure = on_failure
        self._lock = threading.Lock()
        self._stopped = False
        self._failure: UserError | None = None
        self._awaited: int | None = None  # the number of the batch that the main thread waits for
        self._waiting_for: tuple[int | None, bool] = (None, False)  # that batch, and whether its worker has started
        self._waited = 0.0  # seconds since `_waiting_for` changed

    def start(self) -> None:
        threading.Thread(target=self._run, name="loader-watch", daemon=True).start()

    def expect(self, batch: int | None) -> None:
        """Notes that the main thread now waits for the batch of this number, or, with None, that it does not wait."""
        self._awaited = batch

    def failure(self) -> UserError | None:
        """Returns the error for a worker that died or stalled, if any. Kills a stalled worker: nothing else ends it."""
        with self._lock:
            if self._failure is None and not self._stopped and (line := self._dead() or self._stalled()):
                self._failure = UserError(line)
                self.on_failure(self._failure)
            return self._failure

    def failure_after(self, error: Exception) -> UserError | None:
        """Returns the error for a worker that failed, if its failure is why a batch could not be received."""
        if not isinstance(error, (*HANG_UPS, RuntimeError)):  # RuntimeError: torch's own check of the workers
            return None
        deadline = time.monotonic() + (DEATH_SECONDS if isinstance(error, HANG_UPS) else 0)
        while (failure := self.failure()) is None and time.monotonic() < deadline:
            time.sleep(0.01)  # the sentinel of a worker is a pipe, which is closed too early as well
        return failure

    def stop(self) -> None:
        """Stops the watch; workers may end from now on."""
        self._stopped = True

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped and self.failure() is None and (alive := self._alive()):
            connection.wait([worker.sentinel for worker in alive], POLL_SECONDS)
            now = time.monotonic()
            # limited, because this process may have been suspended together with its workers
            self._add_waiting_time(min(now - last, 2 * POLL_SECONDS))
            last = now

    def _add_waiting_time(self, seconds: float) -> None:
        """Counts the time for which the main thread waits for one batch; it begins again when the worker starts."""
        awaited = self._awaited
        waiting_for = awaited, awaited is not None and bool(self._worker_of(awaited)[1])
        self._waited = self._waited + seconds if waiting_for == self._waiting_for else 0.0
        self._waiting_for = waiting_for

    def _worker_of(self, batch: int) -> tuple[int, str, float]:
        """The worker that loads a batch (torch assigns them in turn), its activity, and when that began."""
        worker = batch % len(self.workers)
        return worker, *self.board.read(worker)

    def _alive(self) -> list[BaseProcess]:
        """The workers without exit code 0. One that has failed by now is included, so that the wait returns at once."""
        with self._lock:
            return [worker for worker in self.workers if worker.exitcode != 0]

    def _dead(self) -> str | None:
        for number, worker in enumerate(self.workers):
            if code := worker.exitcode:  # under the lock: of two threads that read it at once, one gets None
                activity = self.board.read(number)[0] or "starting"
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                remedy = REMEDIES.get(-code, OTHER_REMEDY)  # type: ignore[call-overload]
                return f"{self._name(number)} {how} while {activity}: {remedy}"
        return None

    def _stalled(self) -> str | None:
        batch, started = self._waiting_for
        if batch is None or self._waited < self.stall_seconds + (0 if started else START_SECONDS):
            return None
        number, activity, since = self._worker_of(batch)
        state = f"has been {activity} for {time.monotonic() - since:.0f} s" if activity else "has not started yet"
        self.workers[number].kill()
        return (
            f"{self._name(number)} has delivered nothing for {self._waited:.0f} s and {state}: does the file system of "
            "data.root respond? if it is only slow, raise data.stall_seconds"
        )

    def _name(self, number: int) -> str:
        return f"loader worker {number} of rank {self.rank} (pid {self.workers[number].pid})"


class WatchedLoader:
    """Iterates over a DataLoader's batches while its workers are watched; there are none to watch with workers=0."""

    def __init__(
        self,
        loader: DataLoader[Batch],
        board: ActivityBoard,
        batches: int,
        rank: int,
        stall_seconds: float,
        on_failure: Callable[[UserError], None] | None,
        while_waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """`batches`: how many the loader has. `on_failure`, `while_waiting`: as in `build_loader`."""
        self.loader = loader
        self.board = board
        self.batches = batches
        self.rank = rank
        self.stall_seconds = stall_seconds
        self.on_failure = on_failure or _ignore_failure
        self.while_waiting = while_waiting

    def __iter__(self) -> Iterator[Batch]:
        self.board.clear()
        with signals_blocked(), _keep_sigchld_handler():
            iterator = iter(self.loader)
        if self.loader.num_workers == 0:
            for _ in range(self.batches):
                yield self._next(iterator)
            return
        workers: list[BaseProcess] = iterator._workers  # type: ignore[attr-defined]
        if pinning := getattr(iterator, "_pin_memory_thread", None):
            pinning._invoke_excepthook = _report_unless_hung_up
        _started.update(workers)
        watch = WorkerWatch(self.board, workers, self.rank, self.stall_seconds, self.on_failure)
        watch.start()
        try:
            for number in range(self.batches):
                watch.expect(number)
                batch = self._next(iterator)
                watch.expect(None)
                if number == self.batches - 1:
                    watch.stop()  # the loader now ends its workers, with a signal if necessary
                yield batch
        except Exception as error:
            failure = watch.failure_after(error)
            watch.stop()
            _abandon(iterator)
            if failure is not None:
                raise failure from error
            raise
        finally:
            watch.stop()

    def _next(self, iterator: Iterator[Batch]) -> Batch:
        try:
            with self.while_waiting():
                return next(iterator)
        except UserError as error:  # torch puts the worker's traceback before the message
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


def _abandon(iterator: Iterator[Batch]) -> None:
    """Ends the workers of an iteration that has failed, and leaves its queues open until this process ends.

    torch closes them in `__del__`. The error's traceback refers to the iterator, so that the garbage collector calls it
    together with `__del__` of the queues' connections, and both close the same file descriptors. The second time, they
    may belong to another file.
    """
    iterator._shutdown = True  # type: ignore[attr-defined]
    if done := getattr(iterator, "_pin_memory_thread_done_event", None):
        done.set()
    for queue in iterator._index_queues:  # type: ignore[attr-defined]
        queue.cancel_join_thread()
    for worker in iterator._workers:  # type: ignore[attr-defined]
        worker.kill()


def _report_unless_hung_up(thread: threading.Thread) -> None:
    """Reports the error that ended torch's pinning thread, unless a worker that died closed the connection to it.

    The main thread then raises the error that names the worker.
    """
    error = sys.exc_info()[1]
    if error is not None and not isinstance(error, HANG_UPS):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))


_started: WeakSet[BaseProcess] = WeakSet()


def _kill_remaining_workers() -> None:
    for worker in _started:
        if worker.is_alive():
            worker.kill()


# An iteration that has not finished, because a traceback still refers to it, leaves its workers running until this
# process exits. multiprocessing then sends them SIGTERM, which they block (`signals_blocked`), and waits for them. This
# finalizer runs first.
Finalize(None, _kill_remaining_workers, exitpriority=10)


@contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Restores the handler of SIGCHLD at the end of the block.

    When a worker dies, the handler that a DataLoader installs raises an error in the middle of whatever the main thread
    is doing, even while it reports that very death. A WorkerWatch notices the death just as soon.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # torch installs none in other threads
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if handler is not None:  # a handler that was not set by Python cannot be restored
            signal.signal(signal.SIGCHLD, handler)


def _ignore_failure(error: UserError) -> None:
    """Does nothing: the iteration raises the error."""
