"""A rank fails while the other one waits for it: both end at once, and only the one that failed prints."""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from gen1_train.errors import LOST, UserError
from gen1_train.system.signals import STOP
from gen1_train.training.failures.rank_failure import RankFailure
from tests.training.pair import run_pair, train_small

pytestmark = pytest.mark.slow


def lines(outputs: list[str], word: str) -> list[str]:
    return [line for text in outputs for line in text.splitlines() if word in line]


def fail_on(rank: int, failing: tuple[int, ...], error: Exception) -> None:
    def step(number: int) -> None:
        if number == 1 and rank in failing:
            raise error

    train_small(step)


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_a_mistake_ends_all_ranks_with_one_line(tmp_path: Path, failing: tuple[int, ...]) -> None:
    codes, outputs = run_pair(fail_on, tmp_path, failing, UserError("the thing is broken: fix it"))
    assert codes == [2, 2], outputs
    assert lines(outputs, "error") == ["gen1-train: error: the thing is broken: fix it"]
    assert not lines(outputs, "Traceback")


def test_a_bug_ends_all_ranks_with_one_traceback(tmp_path: Path) -> None:
    codes, outputs = run_pair(fail_on, tmp_path, (1,), ZeroDivisionError("a bug"))
    assert codes == [1, 1], outputs
    assert len(lines(outputs, "Traceback")) == len(lines([outputs[1]], "ZeroDivisionError: a bug")) == 1
    assert not lines([outputs[0]], "Error")


def hang_and_fail(rank: int) -> None:
    """The main thread of rank 1 never returns; another thread of it fails."""
    failure = RankFailure()

    def step(number: int) -> None:
        if rank == 1:
            threading.Thread(target=failure.fail, args=(UserError("the other thread failed"),)).start()
            threading.Event().wait()

    train_small(step, failure=failure)


def test_a_thread_ends_all_ranks_while_both_main_threads_are_stuck(tmp_path: Path) -> None:
    codes, outputs = run_pair(hang_and_fail, tmp_path)
    assert codes == [2, 2], outputs
    assert lines(outputs, "error") == ["gen1-train: error: the other thread failed"] == lines([outputs[1]], "error")


def just_train(rank: int) -> None:
    train_small(lambda number: None)
    sys.exit(3)  # ends this process alone: nothing watches the other one any more


def test_finished_ranks_end_independently(tmp_path: Path) -> None:
    codes, outputs = run_pair(just_train, tmp_path)
    assert codes == [3, 3] and not lines(outputs, "error")


def be_killed(rank: int, victim: int, saved: bool) -> None:
    def step(number: int) -> None:
        if number == 1 and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    train_small(step, failure=RankFailure(lambda: saved))


@pytest.mark.parametrize(("victim", "saved"), [(0, True), (1, True), (1, False)])
def test_a_killed_rank_is_named_and_no_rank_waits_for_it(tmp_path: Path, victim: int, saved: bool) -> None:
    """The exit code shows whether there is a new checkpoint, from which another start would resume."""
    codes, outputs = run_pair(be_killed, tmp_path, victim, saved)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == (LOST if saved else 1), outputs
    (line,) = lines(outputs, "error")
    assert line.startswith(f"gen1-train: error: rank {victim} ") and "is gone" in line and "to resume from" in line
    assert not lines(outputs, "Traceback")


def be_interrupted(rank: int) -> None:
    """Ctrl-C reaches both ranks; rank 0 takes longer to end."""
    STOP.listen()

    def step(number: int) -> None:
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    try:
        train_small(step)
    except (KeyboardInterrupt, SystemExit):
        STOP.caught()
        time.sleep(0 if rank else 3)
        sys.exit(4)


def test_interrupted_ranks_do_not_report_each_other(tmp_path: Path) -> None:
    codes, outputs = run_pair(be_interrupted, tmp_path)
    assert codes == [4, 4] and not lines(outputs, "error"), outputs


def wait_alone(rank: int, seconds: float) -> None:
    """Only one of the ranks comes."""
    if rank == 0:
        return
    failure = RankFailure()
    with failure.awaiting_ranks(2, seconds):
        train_small(lambda number: None, failure=failure)


def test_a_rank_that_the_others_never_meet_ends(tmp_path: Path) -> None:
    codes, outputs = run_pair(wait_alone, tmp_path, 2.0)
    assert codes == [0, 1]
    (line,) = lines(outputs, "error")
    assert re.fullmatch(r"gen1-train: error: the 2 ranks have not met at 127.0.0.1:\d+ within 2 s: look at .*", line)


def meet(rank: int) -> None:
    failure = RankFailure()
    with failure.awaiting_ranks(2, 20.0):
        train_small(lambda number: time.sleep(0.1), failure=failure)
    assert failure._met.is_set()


def test_ranks_that_meet_are_not_ended(tmp_path: Path) -> None:
    assert run_pair(meet, tmp_path)[0] == [0, 0]
