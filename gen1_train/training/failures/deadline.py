"""How far a rank has come in its step, and whether the step takes too long.

Ranks wait for each other in the collectives of a step, so a rank that hangs holds up all of them, without an error,
until the collective times out. A step therefore has a deadline, a multiple of the running median. It lasts until the
next one begins, without the pauses, which have limits of their own: waiting for data or for a disk, checkpoints,
validation and previews.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed.distributed_c10d import _world

PHASES = ("forward", "backward", "optimizer", "end")  # of a micro-batch, in order
MEASURED = 10  # steps in a row that a process has to measure before a step can be late; ours
WINDOW = 100  # steps of the running median; ours
LONGEST_TICK = 15.0  # seconds that count between two looks: more have passed only if the process was suspended
LONG_PAUSE = 0.25  # of the least deadline: after that time, a pause is announced to the other ranks; ours
SLOW = 0.5  # of the deadline: from then on, a rank asks whether another one was late before; ours


@dataclass(frozen=True, order=True)
class Position:
    """How far a rank has come. The largest one is the farthest."""

    step: int  # the optimizer step that it takes, or took last; the first one is 1
    micro_batch: int  # of the step, from 1 on
    phase: int  # of PHASES
    collectives: int  # that it has entered since the start; 0 in a single process

    def __str__(self) -> str:
        where = f"micro-batch {self.micro_batch} of step {self.step}"
        name = PHASES[self.phase]
        if name == "end":
            return f"after {where}"
        return f"in the {name} pass of {where}" if name != "optimizer" else f"in the optimizer, {where}"


@dataclass(frozen=True)
class Late:
    """A step that takes too long."""

    step: int
    limit: float  # seconds
    median: float  # seconds of earlier steps

    def __str__(self) -> str:
        return f"step {self.step} takes longer than {self.limit:.4g} s (the median is {self.median:.3g} s)"


class Deadline:
    """The deadline of the steps of one rank.

    The main thread reports how far it is. Another one calls `tick` all the time, since the main thread may be stuck.
    """

    def __init__(
        self, multiple: float = 0.0, seconds: float = 300.0, is_pausing: Callable[[], bool] = lambda: False
    ) -> None:
        """A step may take `multiple` times the median, and at least `seconds`. A `multiple` of 0: there is no limit.

        `is_pausing`: whether the main thread does just now what has a limit of its own.
        """
        self.multiple = multiple
        self.seconds = seconds
        self._is_pausing = is_pausing
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self._median = math.inf
        self._step, self._micro_batch, self._phase = 0, 0, PHASES.index("end")
        self.done = 0  # the last step that is complete
        self._began = 0.0  # of the micro-batch
        self._spent = 0.0  # seconds in the earlier micro-batches of the step
        self._ticked: float | None = None
        self._watched = 0  # the step in which `_late` was counted
        self._late = 0.0  # seconds in the step, as `tick` has seen them
        self._paused = 0.0  # seconds of the pause in progress

    def begin(self, step: int, micro_batch: int) -> None:
        """A micro-batch of an optimizer step begins."""
        if step != self._step:
            self._spent = 0.0
            self.done = step - 1
        self._began = time.perf_counter()
        self._step, self._micro_batch, self._phase = step, micro_batch, PHASES.index("forward")

    def enter(self, phase: str) -> None:
        """The next of PHASES begins."""
        self._phase = PHASES.index(phase)

    def end(self, done: int) -> None:
        """The micro-batch has ended. `done`: the last step that is complete."""
        self._phase = PHASES.index("end")
        self._spent += time.perf_counter() - self._began
        if done > self.done:
            self.done = done
            self._durations.append(self._spent)
            if len(self._durations) >= MEASURED:
                self._median = statistics.median(self._durations)
            self._spent = 0.0

    def tick(self) -> Late | None:
        """Counts the time since the last call. Returns the step in progress if it takes too long."""
        now = time.monotonic()
        passed = min(now - self._ticked, LONGEST_TICK) if self._ticked is not None else 0.0
        self._ticked = now
        if self._is_pausing():
            self._paused += passed
            return None
        self._paused = 0.0
        if self._step != self._watched:
            self._watched, self._late = self._step, 0.0
            return None
        self._late += passed
        return Late(self._step, self.limit, self._median) if self._late > self.limit else None

    def postpone(self) -> None:
        """Lets the step in progress begin again, because it waits for a rank that pauses."""
        self._late = 0.0

    @property
    def limit(self) -> float:
        """Seconds that a step may take."""
        known = self.multiple > 0 and len(self._durations) >= MEASURED
        return max(self.seconds, self.multiple * self._median) if known else math.inf

    @property
    def is_slow(self) -> bool:
        """Whether this rank may soon be late, or another one because of it."""
        return self.long_pause is not None or self._late > SLOW * self.limit

    @property
    def long_pause(self) -> int | None:
        """The last step before a pause that may make other ranks late; None if there is none.

        A rank that is still in that step, or in an earlier one, does not wait for this one.
        """
        return self.done if self.multiple > 0 and self._paused > LONG_PAUSE * self.seconds else None

    @property
    def position(self) -> Position:
        return Position(self._step, self._micro_batch, self._phase, collectives())


def collectives() -> int:
    """Returns the number of collectives that this rank has entered, in all process groups."""
    count = 0
    with suppress(RuntimeError):  # a group may be in the making, or its backend may not count
        for group in list(_world.pg_map):
            count += group._get_sequence_number_for_group()  # type: ignore[attr-defined]
    return count
