"""Where the wall time goes: all of it, parted among the phases of training."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

import torch

Phase = Literal["data_wait", "forward", "backward", "optimizer", "ema", "checkpoint", "validation", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Stamp(Protocol):
    """A moment."""

    def passed(self) -> bool:
        """Whether it lies in the past."""
        ...

    def wait(self) -> None:
        """Comes back when it does."""
        ...

    def seconds_until(self, later: "Stamp") -> float:
        """To a later moment; both have passed."""
        ...


class HostStamp:
    """Now, in this process."""

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
    """When the GPU has done all that it has been given so far."""

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
    """Every moment counts for one of PHASES, `other` where nothing else is said; so they add up to the wall time.

    On a GPU the stamps are events on its stream, read when they have passed: no step waits for the GPU, and each phase
    has the time in which the GPU did its work, or had nothing to do, however far the process was ahead. A `data_wait`
    that the GPU does not notice is none.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.restart(device)

    def restart(self, device: torch.device | str) -> None:
        """Begins at zero, on this device: a run knows its device after the callbacks that share a clock are made."""
        self._stamp: type[HostStamp] | type[CudaStamp] = CudaStamp if torch.device(device).type == "cuda" else HostStamp
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "other"
        self._begun: deque[tuple[Stamp, Phase]] = deque([(self._stamp(), self._phase)])  # the last one goes on

    def switch(self, phase: Phase) -> None:
        """From now on time counts for this phase."""
        if phase not in self._seconds:
            raise KeyError(phase)
        self._phase = phase
        self._begun.append((self._stamp(), phase))
        self._add_up()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """The time in here counts for this phase, and for no other that is open around it."""
        outer = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(outer)

    def take(self) -> dict[Phase, float]:
        """Seconds of every phase since they were last taken."""
        self.switch(self._phase)
        self._begun[-1][0].wait()
        self._add_up()
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def _add_up(self) -> None:
        """What has ended so far."""
        while len(self._begun) > 1 and self._begun[1][0].passed():
            begin, phase = self._begun.popleft()
            self._seconds[phase] += begin.seconds_until(self._begun[0][0])
