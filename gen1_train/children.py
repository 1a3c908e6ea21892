"""Processes of ours: how many the machine has cores for, and pools of workers, which end with their parent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from gen1_train.errors import UserError

Job = TypeVar("Job")
Made = TypeVar("Made")
SPAWN = multiprocessing.get_context("spawn")  # a fork would share decoders, torch's threads and the GPU


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Processes that are started in this block hear of Ctrl-C once they begin, and this one after the block.

    Otherwise each would die in the midst of its imports, with a traceback. Children inherit the mask. It does not hold
    for this process: any other thread takes the signal, and Python calls the handler here; so that waits as well.
    """
    came: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number)) if here else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def worker_pool(
    work: Callable[[Job], Made],
    jobs: Iterable[Job],
    workers: int,
    mend: str,
    start: Callable[..., object],
    *given: Any,
) -> Iterator[list[Future[Made]]]:
    """Futures of `work`, a function of a module, on each job, in so many processes, each of which calls start(*given).

    Jobs that have not begun when the block ends are left. UserError, with `mend`, when a process is killed. What
    workers share (queues, counters) is made by SPAWN and given.
    """
    pool = ProcessPoolExecutor(workers, SPAWN, initializer=_begin, initargs=(start, given))
    try:
        with interrupts_wait():
            futures = [pool.submit(work, job) for job in jobs]
        yield futures
    except BrokenProcessPool as error:
        raise UserError(f"a worker process was killed (out of memory?): {mend}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., object], given: tuple[Any, ...]) -> None:
    """Makes a worker process end with its parent, however that ends, and leave Ctrl-C to it; then its own start.

    A ProcessPoolExecutor would let it wait for the next task for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from every worker
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    start(*given)
