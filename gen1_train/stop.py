"""SIGUSR1 and SIGTERM ask this process to stop; what that means depends on whether there is something to save."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# multiprocessing's tracker tidies up after a process that was ended at once, and would say so after the line that
# tells why; it takes this process' options when it starts
QUIET_TRACKER = "ignore:resource_tracker"


class StopRequest:
    """Whether this process was asked to stop, from its first moment on: Slurm may ask while it still imports torch.

    The handler sets a flag and does nothing else. A checkpoint that is saved inside a handler, as Lightning's does,
    finds the ranks in different collectives.
    """

    def __init__(self) -> None:
        self.by: str | None = None  # the first signal that came
        self.waits = False  # there is something to save: the process ends at a step that all ranks agree on
        self.listening = False

    def listen(self) -> None:
        """From now on; again after somebody else has put handlers of his own in the place."""
        if not self.listening:
            with deaf():  # multiprocessing's tracker, which is to live as long as this process, is started in it
                self.listening = True
        for number in SIGNALS:
            signal.signal(number, self._heard)

    def end(self) -> None:
        """For a process that is about to end: Python puts the defaults back before it does, and they would kill it."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.by = self.by or signal.Signals(number).name
        if not self.waits:
            sys.exit(128 + number)


STOP = StopRequest()  # of this process: signals know no other scope


@contextmanager
def deaf() -> Iterator[None]:
    """Processes started in here never hear SIGNALS: Slurm sends them to all that a rank has started, too.

    They stay blocked in these, across exec; here what comes meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if QUIET_TRACKER not in sys.warnoptions:
            sys.warnoptions.append(QUIET_TRACKER)
        resource_tracker.ensure_running()  # the first time it unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
