"""Processes: the number of cores they may use, pools of workers that end with their parent, and the end of a rank."""

import atexit
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnContext
from typing import Any, NoReturn, TypeVar

from gen1_train.errors import MISTAKE, UserError
from gen1_train.system.console import Console, current
from gen1_train.system.locks import release_all
from gen1_train.system.signals import exit_code, interrupts_deferred, signals_blocked

Job = TypeVar("Job")
Result = TypeVar("Result")
LAUNCHER = "GEN1_TRAIN_LAUNCHER"  # in the environment of ranks: the id of the process that starts them
logger = logging.getLogger(__name__)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spawn_context() -> SpawnContext:
    """The context of processes that are not forked: a fork would share decoders, torch's threads and the GPU.

    What it makes starts multiprocessing's tracker, which is started here because it has to survive a signal to all
    processes of a command.
    """
    with signals_blocked():
        return multiprocessing.get_context("spawn")


@contextmanager
def worker_pool(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    remedy: str,
    start: Callable[..., object],
    *arguments: Any,
) -> Iterator[list[Future[Result]]]:
    """Yields the futures of `work`, a function at module level, for each job, in a pool of `workers` processes.

    Each process first opens the console of this one, so that its log records are printed, and calls
    `start(*arguments)`. Queues and counters that the workers share are made by `spawn_context` and passed in
    `arguments`. Jobs that have not begun when the block ends are canceled; if it ends with a signal, so are those that
    have begun. Raises UserError, which ends with `remedy`, if a worker process is killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, spawn_context(), initializer=_start_worker, initargs=(current(), start, arguments)
    )
    try:
        with signals_blocked(), interrupts_deferred():
            futures = [pool.submit(work, job) for job in jobs]
        yield futures
    except (BrokenProcessPool, KeyboardInterrupt) as error:
        # Python 3.11 waits forever for a worker that it started while it was noticing that another one was killed
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"a worker process was killed (out of memory?): {remedy}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(console: Console | None, start: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Makes a worker process leave Ctrl-C to its parent and end with it, however that ends; then runs `start`.

    Otherwise a worker of a ProcessPoolExecutor would wait forever for its next task.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from every worker
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def end_with_parent() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if console is not None:
        console.open()
    start(*arguments)


def run_without_finalizing(main: Callable[[], object]) -> None:
    """Calls `main` such that this process then ends without Python's finalization, after all other exit handlers.

    A rank that has finished its work could otherwise abort: if a thread of gloo or of autograd releases a tensor while
    Python is finalizing, the process dies with `terminate called without an active exception` and exit code 134
    (PyTorch issue 190489). Destroying the process groups does not prevent it, because DeepSpeed keeps some of them.
    """
    code = 1
    atexit.register(lambda: leave(code))  # handlers are called in reverse order
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except KeyboardInterrupt as error:
        code = exit_code(error)
        raise


@contextmanager
def ranks_end_with_this_process() -> Iterator[None]:
    """Lets the ranks that this process starts in the block end with it, see `end_with_launcher`."""
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(LAUNCHER, None)


def is_child_rank() -> bool:
    """Whether this process was started as a rank in another one's block of `ranks_end_with_this_process`."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def end_with_launcher() -> None:
    """Ends this process with the one that started it as a rank, even if that is killed before the ranks have met.

    The ranks of another launcher are not affected: a shell that starts one may end before it.
    """
    if not is_child_rank():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        leave(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def leave_with(error: UserError) -> NoReturn:
    """Prints a mistake and ends this process at once; see `leave`."""
    logger.error("%s", error)
    leave(MISTAKE)


def leave(code: int) -> NoReturn:
    """Ends this process at once, together with its loader workers, even stopped ones. Any thread may call it.

    The locks that it holds are released.
    """
    release_all()
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)
