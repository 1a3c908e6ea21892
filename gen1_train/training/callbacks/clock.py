"""Measures how the wall time is divided among the phases of training."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

import torch

Phase = Literal["data_wait", "forward", "backward", "optimizer", "ema", "checkpoint", "validation", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Stamp(Protocol):
    """A point in time."""

    def passed(self) -> bool:
        """Whether it is in the past."""
        ...

    def wait(self) -> None:
        """Blocks until it has passed."""
        ...

    def seconds_until(self, later: "Stamp") -> float:
        """Seconds until a later stamp; both must have passed."""
        ...


class HostStamp:
    """The current time of this process."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def passed(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_until(self, later: Stamp) -> float:
        assert isinstance(later, HostStamp)
        return later._at - self._at


class CudaStamp:
    """The time at which the GPU finishes all work that is queued so far."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def passed(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_until(self, later: Stamp) -> float:
        assert isinstance(later, CudaStamp)
        return self._event.elapsed_time(later._event) / 1e3


class Clock:
    """Assigns all time to one of PHASES, `other` by default, so that the phases add up to the wall time.

    On a GPU the stamps are events on its stream, read after they have passed. No step waits for the GPU, and each phase
    gets the time in which the GPU did its work or was idle, however far ahead the process was. A `data_wait` during
    which the GPU stays busy does not count.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.restart(device)

    def restart(self, device: torch.device | str) -> None:
        """Starts again at zero on this device, which is unknown when the callbacks that share a clock are built."""
        self._stamp: type[HostStamp] | type[CudaStamp] = CudaStamp if torch.device(device).type == "cuda" else HostStamp
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "other"
        self._begun: deque[tuple[Stamp, Phase]] = deque([(self._stamp(), self._phase)])  # the last one is still running

    def switch(self, phase: Phase) -> None:
        """Assigns the time from now on to this phase."""
        if phase not in self._seconds:
            raise KeyError(phase)
        self._phase = phase
        self._begun.append((self._stamp(), phase))
        self._add_up()

    @property
    def current(self) -> Phase:
        """The phase to which the time is assigned just now. Any thread may ask."""
        return self._phase

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Assigns the time of a block to this phase alone; the phase around it continues afterwards."""
        outer = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(outer)

    def take(self) -> dict[Phase, float]:
        """Returns the seconds of every phase since the last call."""
        self.switch(self._phase)
        self._begun[-1][0].wait()
        self._add_up()
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def _add_up(self) -> None:
        """Adds up the spans that have ended."""
        while len(self._begun) > 1 and self._begun[1][0].passed():
            begin, phase = self._begun.popleft()
            self._seconds[phase] += begin.seconds_until(self._begun[0][0])
