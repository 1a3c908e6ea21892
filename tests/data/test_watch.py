"""Loader workers that die, hang or hit a bug: the line names the worker and the sample that it held."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from gen1_train.batch import Sample
from gen1_train.data import watch
from gen1_train.data.loader import BatchDataset, Place, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.data.watch import Board, Watch
from gen1_train.errors import UserError
from tests.made import make_shard_set

VIDEO = "video-32x16"
HELD = f"reading sample 5 of {VIDEO} (shard {VIDEO}-000000.tar, row 5) for step {{step}}, slot {{slot}}"


def test_a_board_holds_what_each_worker_does() -> None:
    board = Board(2)
    assert board.read(0) == board.read(1) == ("", 0.0)
    before = time.monotonic()
    board.write(1, "reading a sample")
    doing, since = board.read(1)
    assert doing == "reading a sample" and before <= since <= time.monotonic()
    board.write(0, "ü" * 400)
    assert board.read(0)[0] == "ü" * 250 and board.read(1)[0] == "reading a sample"
    board.clear()
    assert board.read(0) == board.read(1) == ("", 0.0)


@pytest.fixture
def sleepers() -> Iterator[list[BaseProcess]]:
    """Two processes that do nothing."""
    made = [get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True) for _ in range(2)]
    for process in made:
        process.start()
    yield list(made)
    for process in made:
        process.kill()


def failure_of(board: Board, workers: list[BaseProcess], deadline: float, awaited: int | None) -> str:
    """What a Watch says by itself, from its thread, when it is told that the main thread waits for a batch."""
    said: queue.Queue[UserError] = queue.Queue()
    watch = Watch(board, workers, 3, deadline, said.put)
    watch.expect(awaited)
    watch.start()
    error = said.get(timeout=60)
    assert watch.failure() is error and said.empty()
    return str(error)


def test_the_worker_that_owes_the_batch_is_the_one_that_stalls(sleepers: list[BaseProcess]) -> None:
    board = Board(2)
    for worker in range(2):
        board.write(worker, f"reading sample {worker}")
    stopped = sleepers[1]
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    line = failure_of(board, sleepers, deadline=1.0, awaited=5)
    assert line.startswith(f"loader worker 1 of rank 3 (pid {stopped.pid}) has brought nothing for 1 s and has been ")
    assert " reading sample 1 for " in line and "data.stall_seconds" in line
    stopped.join(60)  # a stopped process would never end by itself
    assert stopped.exitcode == -signal.SIGKILL and sleepers[0].exitcode is None


def test_a_worker_that_dies_is_said_whether_or_not_a_batch_is_awaited(sleepers: list[BaseProcess]) -> None:
    board = Board(2)
    board.write(0, "reading sample 0")
    sleepers[0].kill()
    sleepers[0].join(60)
    told = f"loader worker 0 of rank 3 (pid {sleepers[0].pid}) was killed by signal 9 while reading sample 0: "
    assert failure_of(board, sleepers, deadline=60.0, awaited=None).startswith(told)
    found = Watch(board, sleepers, 3, 60.0, lambda error: None).failure()  # without its thread, for who asks
    assert str(found).startswith(told)


def test_a_wait_is_counted_for_each_batch_and_from_its_worker_s_start(sleepers: list[BaseProcess]) -> None:
    board = Board(1)
    own = Watch(board, sleepers[:1], 0, 1.0, lambda error: None)  # its thread is not started: the time is told here
    own.expect(0)
    for _ in range(4):
        own._count(watch.START_SECONDS / 4)
    assert own.failure() is None
    board.write(0, "reading")
    for batch in range(3):
        own.expect(batch)
        for seconds in (100.0, 0.9):  # the first were not all of this wait
            own._count(seconds)
            assert own.failure() is None
    own.expect(None)
    for _ in range(2):
        own._count(100.0)  # nobody waits
        assert own.failure() is None


def test_a_worker_that_never_starts_is_said(sleepers: list[BaseProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "START_SECONDS", 0.5)
    line = failure_of(Board(1), sleepers[:1], deadline=0.5, awaited=0)
    assert "has brought nothing for 1 s and has not started yet" in line


def test_workers_may_end_when_the_watch_is_over(sleepers: list[BaseProcess]) -> None:
    over = Watch(Board(1), sleepers[:1], 0, 1.0, lambda error: None)
    over.stop()
    sleepers[0].kill()
    sleepers[0].join(60)
    assert over.failure() is None


class Asked:
    """A worker that has ended and notes whether two threads ask it how at the same time: one would be told None."""

    pid = 4711

    def __init__(self) -> None:
        self.sentinel, self._end = os.pipe()
        os.close(self._end)  # as of a process that has ended: it is ready to be read
        self.asking, self.times, self.overlapped = 0, 0, False

    @property
    def exitcode(self) -> int | None:
        self.asking += 1
        self.times += 1
        self.overlapped |= self.asking > 1
        time.sleep(0.001)
        self.asking -= 1
        return None


def test_two_threads_do_not_ask_for_an_exit_code_at_the_same_time() -> None:
    worker = Asked()
    own = Watch(Board(1), [worker], 0, 60.0, lambda error: None)  # type: ignore[list-item]
    own.start()
    while worker.times < 200:
        assert own.failure() is None
    own.stop()
    assert not worker.overlapped


class Bad(ShardSet):
    """Reads as ever, but sample 5 of the video pool does what the file `bad` in its folder says."""

    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        if pool == VIDEO and index == 5:
            match (self.root / "bad").read_text():
                case "bug":
                    raise ZeroDivisionError("a bug")
                case "exit":
                    os._exit(7)
                case name:
                    os.kill(os.getpid(), signal.Signals[name])
        return super().read(pool, index, fields)


@pytest.fixture
def bad(tmp_path: Path) -> BatchDataset:
    shards = Bad(make_shard_set(tmp_path, clips=8, images=0, shards=1))
    return BatchDataset(shards, Schedule(shards, Settings(3, 0, 2)), Place(0, 1, 1), ("moments",))


def held(bad: BatchDataset) -> str:
    """What is done when sample 5 is read."""
    for number in range(8):
        step = bad.schedule.at(number)
        for slot in range(step.size):
            if bad.schedule.sample(step, slot) == 5:
                return HELD.format(step=number, slot=slot)
    raise AssertionError("sample 5 is not read")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("SIGKILL", "was killed by signal 9 while {held}: out of memory? lower data.workers"),
        ("SIGSTOP", "has brought nothing for 3 s and has been {held} for "),
        ("exit", "ended with exit code 7 while {held}: "),
    ],
)
@pytest.mark.slow
def test_a_worker_that_fails_is_an_error_that_names_the_sample(bad: BatchDataset, what: str, said: str) -> None:
    (bad.shards.root / "bad").write_text(what)
    with pytest.raises(UserError) as error:
        list(build_loader(bad, 0, 8, workers=2, pin=False, stall_seconds=3.0))
    line = str(error.value)
    assert line.startswith("loader worker ") and " of rank 0 (pid " in line
    assert said.format(held=held(bad)) in line and "\n" not in line


@pytest.mark.slow
def test_a_worker_that_dies_disturbs_nothing_but_the_iteration(tmp_path: Path) -> None:
    shards = ShardSet(make_shard_set(tmp_path, clips=8, images=0, shards=1))
    dataset = BatchDataset(shards, Schedule(shards, Settings(3, 0, 2)), Place(0, 1, 1), ("moments", "image_embedding"))
    before, others = signal.getsignal(signal.SIGCHLD), set(active_children())  # of other tests
    batches = iter(build_loader(dataset, 0, 8, workers=1, pin=False))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is before
    (worker,) = set(active_children()) - others
    worker.kill()
    worker.join(60)
    time.sleep(0.1)  # a handler of SIGCHLD would raise here
    with pytest.raises(UserError, match=f"pid {worker.pid}\\) was killed by signal 9"):
        list(batches)


LEFT = """
import sys
from gen1_train.data.loader import BatchDataset, Place, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet

if __name__ == "__main__":
    shards = ShardSet(sys.argv[1])
    dataset = BatchDataset(shards, Schedule(shards, Settings(3, 0, 2)), Place(0, 1, 1), ("moments", "image_embedding"))
    left = iter(build_loader(dataset, 0, 8, workers=2, pin=False))  # by a traceback that is kept, as a rule
    print(next(left).step, flush=True)
"""


@pytest.mark.slow
def test_workers_that_are_left_do_not_keep_the_process_from_its_end(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    root = make_shard_set(tmp_path / "shards", clips=8, images=0, shards=1)
    done = subprocess.run([sys.executable, tmp_path / "left.py", root], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bug_names_the_sample_too(bad: BatchDataset, workers: int) -> None:
    (bad.shards.root / "bad").write_text("bug")
    with pytest.raises(ZeroDivisionError) as error:
        list(build_loader(bad, 0, 8, workers, pin=False))
    told = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert f"gen1-train: this was while {held(bad)}" in told
