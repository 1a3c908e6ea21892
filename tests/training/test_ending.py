"""One rank fails while the other one waits for it: both end at once, and only the one that failed speaks."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.exits import LOST
from gen1_train.training.ending import Ending
from tests.training.pair import run_pair, train_small

pytestmark = pytest.mark.slow


def lines(said: list[str], word: str) -> list[str]:
    return [line for text in said for line in text.splitlines() if word in line]


def fail_on(rank: int, failing: tuple[int, ...], error: Exception) -> None:
    def step(number: int) -> None:
        if number == 1 and rank in failing:
            raise error

    train_small(step)


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_a_mistake_ends_all_ranks_with_one_line(tmp_path: Path, failing: tuple[int, ...]) -> None:
    codes, said = run_pair(fail_on, tmp_path, failing, UserError("the thing is broken: mend it"))
    assert codes == [2, 2], said
    assert lines(said, "error") == ["gen1-train: error: the thing is broken: mend it"]
    assert not lines(said, "Traceback")


def test_a_bug_ends_all_ranks_with_one_traceback(tmp_path: Path) -> None:
    codes, said = run_pair(fail_on, tmp_path, (1,), ZeroDivisionError("a bug"))
    assert codes == [1, 1], said
    assert len(lines(said, "Traceback")) == len(lines([said[1]], "ZeroDivisionError: a bug")) == 1
    assert not lines([said[0]], "Error")


def hang_and_fail(rank: int) -> None:
    """Rank 1's main thread never comes back; another thread of it fails."""
    ending = Ending()

    def step(number: int) -> None:
        if rank == 1:
            threading.Thread(target=ending.fail, args=(UserError("the other thread says so"),)).start()
            threading.Event().wait()

    train_small(step, ending=ending)


def test_a_thread_ends_all_ranks_while_both_main_threads_are_stuck(tmp_path: Path) -> None:
    codes, said = run_pair(hang_and_fail, tmp_path)
    assert codes == [2, 2], said
    assert lines(said, "error") == ["gen1-train: error: the other thread says so"] == lines([said[1]], "error")


def just_train(rank: int) -> None:
    train_small(lambda number: None)
    sys.exit(3)  # of this process alone: nobody listens any more


def test_training_that_is_over_ends_by_itself(tmp_path: Path) -> None:
    codes, said = run_pair(just_train, tmp_path)
    assert codes == [3, 3] and not lines(said, "error")


def be_killed(rank: int, victim: int, saved: bool) -> None:
    def step(number: int) -> None:
        if number == 1 and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    train_small(step, ending=Ending(lambda: saved))


@pytest.mark.parametrize(("victim", "saved"), [(0, True), (1, True), (1, False)])
def test_a_rank_that_is_killed_is_named_and_nobody_waits_for_it(tmp_path: Path, victim: int, saved: bool) -> None:
    """The exit code tells whether there is a new checkpoint, from which another start would go on."""
    codes, said = run_pair(be_killed, tmp_path, victim, saved)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == (LOST if saved else 1), said
    (line,) = lines(said, "error")
    assert line.startswith(f"gen1-train: error: rank {victim} ") and "is gone" in line and "go on" in line
    assert not lines(said, "Traceback")
