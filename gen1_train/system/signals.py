"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: how a command stops depends on whether there is something to save.

If there is not, the handler raises Interrupted in the main thread, and the command ends with one line. Python swallows
an exception that is raised inside a callback, a finalizer, or a library's bare `except:`, so it is raised again until
it arrives. During an import, the exception is raised only where the next module is looked for: the initialization of
a module in C++, as torch's, may abort the process if an exception is raised in it.
"""

import _thread
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from gen1_train.errors import INTERRUPTED

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
ALL = (*SIGNALS, signal.SIGINT)
AGAIN = 0.5  # seconds after which a swallowed exception is raised again
IMPATIENT = 2.0  # seconds after the first Ctrl-C from which another one ends the process at once
LONGEST = 60.0  # seconds in which an interrupted command has to end; it may wait for a disk that is gone
# multiprocessing's tracker cleans up after a process that was killed, and would print a warning after the line that
# names the cause; it takes the warning options that this process has when the tracker starts
QUIET_TRACKER = "ignore:resource_tracker"
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file name of the code that imports modules


class Interrupted(KeyboardInterrupt):
    """A signal that ends a command; `code` is the exit code, 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        super().__init__(f"interrupted{by}")
        self.code = 128 + number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Returns the exit code of a command that ends with this interrupt, which may be Python's own."""
    return interrupt.code if isinstance(interrupt, Interrupted) else INTERRUPTED


class StopRequest:
    """The request to stop this process, recorded from its first moment: Slurm may ask while torch is being imported.

    The handler does as little as possible. Saving a checkpoint inside a handler, as Lightning does, would catch the
    ranks in different collectives.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None  # the name of the first signal received
        self.graceful = False  # there is something to save: the process ends at a step that all ranks agree on
        self.listening = False
        self._handled: list[signal.Signals] = []
        self._interrupted: signal.Signals | None = None  # the signal that ends this process
        self._since = 0.0
        self._raised: Callable[[], BaseException | None] = lambda: None  # a weak reference: swallowed if it is gone
        self._caught = False
        self._insists = False  # the next signal comes from this object, not from an impatient user

    @property
    def interrupted(self) -> bool:
        """Whether a signal ends this process, which saves nothing."""
        return self._interrupted is not None

    def listen(self) -> None:
        """Installs the signal handlers; call it again after other code has installed its own.

        A SIGINT or SIGHUP that this process was told to ignore, for example by nohup, stays ignored.
        """
        if not self.listening:
            self.listening = True
            ignorable = (signal.SIGINT, signal.SIGHUP)
            self._handled = [n for n in ALL if n not in ignorable or signal.getsignal(n) is not signal.SIG_IGN]
            sys.unraisablehook = _quiet(sys.unraisablehook)
            sys.meta_path.insert(0, _Imports())
        for number in self._handled:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignores the signals from now on, in a process that is about to end.

        Before Python exits, it restores the default handlers, which would kill the process.
        """
        for number in self._handled:
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raises Interrupted if a signal has interrupted this process and the exception did not arrive."""
        if self._interrupted is not None:
            self._raise()

    @property
    def is_due(self) -> bool:
        """Whether the exception has to be raised in the main thread: it was not, or it was swallowed."""
        return self._interrupted is not None and not self._caught and self._raised() is None

    def caught(self) -> None:
        """Keeps the exception from being raised again: it has arrived at the end of the command."""
        self._caught = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name
        if self.graceful and number != signal.SIGINT:
            return
        if self._interrupted is None:
            self._interrupted, self._since = signal.Signals(number), time.monotonic()
            _thread.start_new_thread(self._insist, ())  # threading.Thread takes locks that may be held just now
        insists, self._insists = self._insists, False
        if self.is_due and not _is_in_import(frame):
            self._raise()
        if number == signal.SIGINT and not insists and time.monotonic() - self._since > IMPATIENT:
            self._leave()

    def _raise(self) -> NoReturn:
        assert self._interrupted is not None
        raise self._new(self._interrupted)  # no name for it here: the traceback would keep it alive

    def _new(self, number: int) -> Interrupted:
        error = Interrupted(number)
        self._raised = weakref.ref(error)
        return error

    def _insist(self) -> None:
        """In a thread: raises the exception again if it was swallowed, and ends the process if it does not end."""
        assert self._interrupted is not None
        main = threading.main_thread().ident
        while time.monotonic() - self._since < LONGEST:
            time.sleep(AGAIN)
            if self.is_due and main is not None:
                self._insists = True
                signal.pthread_kill(main, self._interrupted)
        self._leave()

    def _leave(self) -> NoReturn:
        assert self._interrupted is not None
        os.write(2, b"ended without cleaning up\n")
        os._exit(128 + self._interrupted)


STOP = StopRequest()  # one per process, as are signal handlers


class _Imports:
    """A finder of modules that finds none: it raises the exception that was held back during an import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises Interrupted in the main thread if it is due."""
        if STOP.is_due and threading.current_thread() is threading.main_thread():
            STOP.check()


def _is_in_import(frame: FrameType | None) -> bool:
    """Whether code that runs in this frame is part of an import."""
    while frame is not None and frame.f_code.co_filename != IMPORT_SYSTEM:
        frame = frame.f_back
    return frame is not None


def _quiet(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Returns a hook for exceptions that Python swallows, which prints no traceback of ours."""
    return lambda raised: None if isinstance(raised.exc_value, Interrupted) else hook(raised)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Blocks SIGNALS for good in the processes started in this block: Slurm sends them to all processes of a rank.

    The children inherit the mask, also across exec. This process handles the signals after the block.
    """
    from multiprocessing import resource_tracker

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if QUIET_TRACKER not in sys.warnoptions:
            sys.warnoptions.append(QUIET_TRACKER)
        resource_tracker.ensure_running()  # the first time, it unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defers all signals of a command: processes started in this block inherit the blocked signals; this one receives
    its signals after the block.

    Otherwise a child would die in the middle of its imports, with a traceback. In this process the mask is not enough:
    any other thread may take the signal, and Python then calls the handler in the main thread. So the handlers are
    replaced as well.
    """
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in ALL if is_main}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # a signal may arrive before its handler is replaced
        for number in handlers:
            signal.signal(number, lambda number, frame: received.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
        yield
    finally:
        for deferred, handler in handlers.items():
            signal.signal(deferred, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for late in received:
            signal.raise_signal(late)
