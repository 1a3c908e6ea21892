"""Loader workers that die, hang or hit a bug: the message names the worker and the sample that it was reading."""

import gc
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children, connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from gen1_train.batch import Sample
from gen1_train.data import watch
from gen1_train.data.loader import BatchDataset, BatchPartition, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.data.watch import ActivityBoard, WorkerWatch
from gen1_train.errors import UserError
from tests.made import make_shard_set

VIDEO = "video-32x16"
ACTIVITY = f"reading sample 5 of {VIDEO} (shard {VIDEO}-000000.tar, row 5) for step {{step}}, slot {{slot}}"


def test_a_board_holds_the_activity_of_each_worker() -> None:
    board = ActivityBoard(2)
    assert board.read(0) == board.read(1) == ("", 0.0)
    before = time.monotonic()
    board.write(1, "reading a sample")
    activity, since = board.read(1)
    assert activity == "reading a sample" and before <= since <= time.monotonic()
    board.write(0, "ü" * 400)
    assert board.read(0)[0] == "ü" * 250 and board.read(1)[0] == "reading a sample"
    board.clear()
    assert board.read(0) == board.read(1) == ("", 0.0)


@pytest.fixture
def sleepers() -> Iterator[list[BaseProcess]]:
    """Two processes that do nothing."""
    processes = [get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    yield list(processes)
    for process in processes:
        process.kill()


def failure_of(board: ActivityBoard, workers: list[BaseProcess], stall_seconds: float, awaited: int | None) -> str:
    """The failure that the thread of a WorkerWatch reports while the main thread waits for batch `awaited`."""
    failures: queue.Queue[UserError] = queue.Queue()
    watch = WorkerWatch(board, workers, 3, stall_seconds, failures.put)
    watch.expect(awaited)
    watch.start()
    error = failures.get(timeout=60)
    assert watch.failure() is error and failures.empty()
    return str(error)


@pytest.mark.slow
def test_a_stall_is_attributed_to_the_worker_that_loads_the_batch(sleepers: list[BaseProcess]) -> None:
    board = ActivityBoard(2)
    for worker in range(2):
        board.write(worker, f"reading sample {worker}")
    stopped = sleepers[1]
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    line = failure_of(board, sleepers, stall_seconds=1.0, awaited=5)
    assert line.startswith(f"loader worker 1 of rank 3 (pid {stopped.pid}) has delivered nothing for 1 s and has been ")
    assert " reading sample 1 for " in line and "data.stall_seconds" in line
    stopped.join(60)  # a stopped process would never end on its own
    assert stopped.exitcode == -signal.SIGKILL and sleepers[0].exitcode is None


def test_a_death_is_reported_even_if_no_batch_is_awaited(sleepers: list[BaseProcess]) -> None:
    board = ActivityBoard(2)
    board.write(0, "reading sample 0")
    sleepers[0].kill()
    sleepers[0].join(60)
    message = f"loader worker 0 of rank 3 (pid {sleepers[0].pid}) was killed by signal 9 while reading sample 0: "
    assert failure_of(board, sleepers, stall_seconds=60.0, awaited=None).startswith(message)
    failure = WorkerWatch(board, sleepers, 3, 60.0, lambda error: None).failure()  # without the thread
    assert str(failure).startswith(message)


def test_waiting_time_is_counted_per_batch_and_from_the_start_of_its_worker(sleepers: list[BaseProcess]) -> None:
    board = ActivityBoard(1)
    watched = WorkerWatch(board, sleepers[:1], 0, 1.0, lambda error: None)  # not started: this test passes the time
    watched.expect(0)
    for _ in range(4):
        watched._add_waiting_time(watch.START_SECONDS / 4)
    assert watched.failure() is None
    board.write(0, "reading")
    for batch in range(3):
        watched.expect(batch)
        for seconds in (100.0, 0.9):  # the first ones began before the wait for this batch
            watched._add_waiting_time(seconds)
            assert watched.failure() is None
    watched.expect(None)
    for _ in range(2):
        watched._add_waiting_time(100.0)  # not waiting for a batch
        assert watched.failure() is None


@pytest.mark.slow
def test_a_worker_that_never_starts_is_reported(sleepers: list[BaseProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "START_SECONDS", 0.5)
    line = failure_of(ActivityBoard(1), sleepers[:1], stall_seconds=0.5, awaited=0)
    assert "has delivered nothing for 1 s and has not started yet" in line


def test_workers_may_end_after_the_watch_is_stopped(sleepers: list[BaseProcess]) -> None:
    stopped = WorkerWatch(ActivityBoard(1), sleepers[:1], 0, 1.0, lambda error: None)
    stopped.stop()
    sleepers[0].kill()
    sleepers[0].join(60)
    assert stopped.failure() is None


class EndedWorker:
    """A worker that has ended, and records whether two threads read its exit code at once: one would get None."""

    pid = 4711

    def __init__(self) -> None:
        self.sentinel, write_end = os.pipe()
        os.close(write_end)  # the sentinel is now readable, like that of an ended process
        self.readers = 0
        self.reads = 0
        self.overlapped = False

    @property
    def exitcode(self) -> int | None:
        self.readers += 1
        self.reads += 1
        self.overlapped |= self.readers > 1
        time.sleep(0.001)
        self.readers -= 1
        return None


def test_two_threads_do_not_read_an_exit_code_at_the_same_time() -> None:
    worker = EndedWorker()
    watched = WorkerWatch(ActivityBoard(1), [worker], 0, 60.0, lambda error: None)  # type: ignore[list-item]
    watched.start()
    while worker.reads < 200:
        assert watched.failure() is None
    watched.stop()
    assert not worker.overlapped


class BadShardSet(ShardSet):
    """A ShardSet whose sample 5 of the video pool fails as the file `bad` in its folder says."""

    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        if pool == VIDEO and index == 5:
            match (self.root / "bad").read_text():
                case "bug":
                    raise ZeroDivisionError("a bug")
                case "exit":
                    os._exit(7)
                case "hang up":
                    # the rank's request for the batch's shared memory is closed, and the worker ends later
                    connection.Listener.accept = hang_up  # type: ignore[method-assign]
                case name:
                    os.kill(os.getpid(), signal.Signals[name])
        return super().read(pool, index, fields)


def hang_up(listener: connection.Listener) -> None:
    """Closes a connection to this process as its end does, but half a second before that end can be seen."""
    listener._listener.accept().close()  # type: ignore[attr-defined]
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def bad_dataset(tmp_path: Path) -> BatchDataset:
    shards = BadShardSet(make_shard_set(tmp_path, clips=8, images=0, shards=1))
    return BatchDataset(shards, Schedule(shards, Settings(3, 0, 2)), BatchPartition(0, 1, 1), ("moments",))


def bad_activity(dataset: BatchDataset) -> str:
    """The activity in which sample 5 is read."""
    for number in range(8):
        step = dataset.schedule.at(number)
        for slot in range(step.size):
            if dataset.schedule.sample(step, slot) == 5:
                return ACTIVITY.format(step=number, slot=slot)
    raise AssertionError("sample 5 is not read")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("SIGKILL", "was killed by signal 9 while {activity}: out of memory? lower data.workers"),
        ("SIGSTOP", "has delivered nothing for 3 s and has been {activity} for "),
        ("exit", "ended with exit code 7 while {activity}: "),
    ],
)
@pytest.mark.slow
def test_a_failed_worker_is_an_error_that_names_the_sample(
    bad_dataset: BatchDataset, failure: str, message: str
) -> None:
    (bad_dataset.shards.root / "bad").write_text(failure)
    with pytest.raises(UserError) as error:
        list(build_loader(bad_dataset, 0, 8, workers=2, pin=False, stall_seconds=3.0))
    line = str(error.value)
    assert line.startswith("loader worker ") and " of rank 0 (pid " in line
    assert message.format(activity=bad_activity(bad_dataset)) in line and "\n" not in line


@pytest.mark.slow
def test_a_dead_worker_raises_only_in_the_iteration(tmp_path: Path) -> None:
    shards = ShardSet(make_shard_set(tmp_path, clips=8, images=0, shards=1))
    fields = ("moments", "image_embedding")
    dataset = BatchDataset(shards, Schedule(shards, Settings(3, 0, 2)), BatchPartition(0, 1, 1), fields)
    handler, others = signal.getsignal(signal.SIGCHLD), set(active_children())  # of other tests
    batches = iter(build_loader(dataset, 0, 8, workers=1, pin=False))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is handler
    (worker,) = set(active_children()) - others
    worker.kill()
    worker.join(60)
    time.sleep(0.1)  # a handler of SIGCHLD would raise here
    with pytest.raises(UserError, match=f"pid {worker.pid}\\) was killed by signal 9"):
        list(batches)


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.slow
def test_a_worker_that_dies_while_its_batch_is_received_is_named(
    bad_dataset: BatchDataset, pin: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (bad_dataset.shards.root / "bad").write_text("hang up")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: pin)  # pins in torch's thread, on a CPU too
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    tracebacks: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    with pytest.raises(UserError, match=r"^loader worker 0 of rank 0 \(pid \d+\) was killed by signal 9 while "):
        list(build_loader(bad_dataset, 0, 8, workers=1, pin=pin))
    gc.collect()  # closes no file descriptor twice: a thread of the loader would print a traceback
    time.sleep(0.1)
    assert not tracebacks and capfd.readouterr().err == ""


UNFINISHED = """
import sys
from gen1_train.data.loader import BatchDataset, BatchPartition, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet

if __name__ == "__main__":
    shards = ShardSet(sys.argv[1])
    fields = ("moments", "image_embedding")
    dataset = BatchDataset(shards, Schedule(shards, Settings(3, 0, 2)), BatchPartition(0, 1, 1), fields)
    unfinished = iter(build_loader(dataset, 0, 8, workers=2, pin=False))  # usually kept by a traceback
    print(next(unfinished).step, flush=True)
"""


@pytest.mark.slow
def test_the_workers_of_an_unfinished_iteration_do_not_block_the_exit(tmp_path: Path) -> None:
    script = tmp_path / "unfinished.py"
    script.write_text(UNFINISHED)
    root = make_shard_set(tmp_path / "shards", clips=8, images=0, shards=1)
    done = subprocess.run([sys.executable, script, root], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_unexpected_error_names_the_sample_too(bad_dataset: BatchDataset, workers: int) -> None:
    (bad_dataset.shards.root / "bad").write_text("bug")
    with pytest.raises(ZeroDivisionError) as error:
        list(build_loader(bad_dataset, 0, 8, workers, pin=False))
    text = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert f"gen1-train: raised while {bad_activity(bad_dataset)}" in text
