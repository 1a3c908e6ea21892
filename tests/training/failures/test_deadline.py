"""The deadline of steps, on a clock that the tests set."""

import math

import pytest

from gen1_train.training.failures import deadline as module
from gen1_train.training.failures.deadline import LONG_PAUSE, LONGEST_TICK, MEASURED, Deadline, Position


class Rank:
    """A rank whose steps take one second; `watch` looks at it every second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, multiple: float = 10.0, seconds: float = 60.0) -> None:
        self.now = 0.0
        for clock in ("monotonic", "perf_counter"):
            monkeypatch.setattr(module.time, clock, lambda: self.now)
        self.pausing = False
        self.deadline = Deadline(multiple, seconds, lambda: self.pausing)

    def steps(self, first: int, last: int, seconds: float = 1.0) -> None:
        for step in range(first, last + 1):
            self.deadline.begin(step, 1)
            self.now += seconds
            self.deadline.end(step)

    def seconds_until_late(self, most: int) -> float:
        """How long the watching thread sees nothing; infinite if that is longer than `most`."""
        self.deadline.tick()
        began = self.now
        while self.now - began < most:
            self.now += 1
            if self.deadline.tick() is not None:
                return self.now - began
        return math.inf


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Rank:
    return Rank(monkeypatch)


@pytest.mark.parametrize(("seconds", "limit"), [(1.0, 60.0), (20.0, 200.0)])
def test_the_limit_is_a_multiple_of_the_median_and_at_least_the_floor(rank: Rank, seconds: float, limit: float) -> None:
    rank.steps(1, MEASURED, seconds)
    rank.steps(MEASURED + 1, MEASURED + 1, 1000.0)  # does not move the median
    rank.deadline.begin(MEASURED + 2, 1)
    assert rank.seconds_until_late(300) == limit + 1
    late = rank.deadline.tick()
    assert late is not None and (late.step, late.limit, late.median) == (MEASURED + 2, limit, seconds)


def test_the_first_steps_have_no_deadline(rank: Rank) -> None:
    rank.steps(1, MEASURED - 1)
    rank.deadline.begin(MEASURED, 1)
    assert rank.seconds_until_late(10_000) == math.inf


def test_there_is_no_deadline_without_a_multiple(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(monkeypatch, multiple=0.0)
    rank.steps(1, MEASURED)
    rank.deadline.begin(MEASURED + 1, 1)
    assert rank.seconds_until_late(10_000) == math.inf and not rank.deadline.is_slow
    rank.pausing = True
    assert rank.seconds_until_late(10_000) == math.inf and rank.deadline.long_pause is None


def test_pauses_do_not_count(rank: Rank) -> None:
    rank.steps(1, MEASURED)
    for micro_batch in (1, 2):  # each waits for its data
        rank.pausing = True
        assert rank.seconds_until_late(100) == math.inf
        rank.pausing = False
        rank.deadline.begin(MEASURED + 1, micro_batch)
        assert rank.seconds_until_late(40 if micro_batch == 1 else 100) == (math.inf if micro_batch == 1 else 21)
        rank.deadline.end(MEASURED)


def test_what_follows_a_step_counts_until_the_next_one_begins(rank: Rank) -> None:
    rank.steps(1, MEASURED)
    rank.deadline.tick()
    assert rank.seconds_until_late(40) == math.inf and rank.seconds_until_late(100) == 21
    rank.deadline.begin(MEASURED + 1, 1)
    assert rank.seconds_until_late(100) == 61


def test_a_long_pause_is_announced_for_the_step_after_which_it_is(rank: Rank) -> None:
    rank.steps(1, MEASURED)
    rank.pausing = True
    rank.seconds_until_late(int(60 * LONG_PAUSE))
    assert rank.deadline.long_pause is None
    rank.seconds_until_late(2)
    assert rank.deadline.long_pause == MEASURED and rank.deadline.is_slow
    rank.pausing = False
    rank.deadline.begin(MEASURED + 1, 1)
    rank.deadline.tick()
    assert rank.deadline.long_pause is None
    rank.deadline.end(MEASURED)  # a micro-batch: its step is not complete
    rank.pausing = True
    rank.seconds_until_late(60)
    assert rank.deadline.long_pause == MEASURED


def test_a_process_that_was_suspended_is_not_late(rank: Rank) -> None:
    rank.steps(1, MEASURED)
    rank.deadline.begin(MEASURED + 1, 1)
    rank.deadline.tick()
    rank.now += 10_000
    assert rank.deadline.tick() is None
    assert rank.seconds_until_late(100) == 60 - LONGEST_TICK + 1


def test_a_step_that_is_postponed_begins_again(rank: Rank) -> None:
    rank.steps(1, MEASURED)
    rank.deadline.begin(MEASURED + 1, 1)
    rank.seconds_until_late(60)
    assert rank.deadline.is_slow
    rank.deadline.postpone()
    assert not rank.deadline.is_slow and rank.seconds_until_late(100) == 61


def test_positions_are_in_the_order_of_training(rank: Rank) -> None:
    seen = [rank.deadline.position]
    for step in (1, 2):
        for micro_batch in (1, 2):
            rank.deadline.begin(step, micro_batch)
            seen.append(rank.deadline.position)
            for phase in ("backward", "optimizer"):
                rank.deadline.enter(phase)
                seen.append(rank.deadline.position)
            rank.deadline.end(step - (micro_batch == 1))
            seen.append(rank.deadline.position)
    assert len(set(seen)) == 17 and seen == sorted(seen)
    assert Position(1, 2, 3, 7) < Position(1, 2, 3, 8) < Position(2, 1, 0, 0)
    assert str(seen[1]) == "in the forward pass of micro-batch 1 of step 1"
    assert str(seen[-1]) == "after micro-batch 2 of step 2"
