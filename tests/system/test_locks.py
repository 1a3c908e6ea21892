import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import FrameType

import pytest

from gen1_train.errors import UserError
from gen1_train.system import locks
from gen1_train.system.locks import LOCK, Lock, Owner, parse_owner, start_time, this_process

HOLD = """
import sys, time
from pathlib import Path
from gen1_train.system.locks import Lock
from gen1_train.system.processes import leave
lock = Lock(Path(sys.argv[1]), "stop it", print)
lock.take()
print("held", flush=True)
sys.stdin.readline()
leave(3)
"""


def lock(folder: Path) -> Lock:
    return Lock(folder, "stop it", pytest.fail)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of tmp_path; it leaves without running its exit handlers after a line."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_owner(folder: Path, owner: Owner, age: float = 0.0) -> None:
    """Writes the lock of an owner whose last heartbeat was `age` seconds ago."""
    (folder / LOCK).write_text(json.dumps(asdict(owner)))
    os.utime(folder / LOCK, (time.time() - age, time.time() - age))


def elsewhere(**changes: object) -> Owner:
    """A process on another machine, which cannot be looked up here."""
    return replace(this_process(), host="node1", boot="another", pid=1, token="theirs", **changes)  # type: ignore[arg-type]


def test_a_lock_is_exclusive_until_its_owner_releases_it(tmp_path: Path) -> None:
    words = rf"{tmp_path} is in use by pid {os.getpid()} on .* since .*: stop it"
    with lock(tmp_path), pytest.raises(UserError, match=words):
        lock(tmp_path).take()
    with lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_live_process_is_respected_and_that_of_a_killed_one_taken_over(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(UserError, match=f"is in use by pid {holder.pid} "):
        lock(tmp_path).take()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_leaves_at_once_releases_its_lock(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.wait() == 3
    assert not (tmp_path / LOCK).exists()


def test_a_process_id_that_is_used_again_does_not_count(tmp_path: Path) -> None:
    write_owner(tmp_path, replace(this_process(), started="1", token="theirs"))
    with lock(tmp_path):
        pass


def test_what_a_killed_process_leaves_while_it_takes_a_lock_is_removed(tmp_path: Path) -> None:
    gone, alive = replace(this_process(), started="1", token="theirs"), this_process()
    elsewhere = replace(gone, boot="another machine's")
    names = {f".{LOCK}.vm-1-a.tmp": gone, f".{LOCK}.after-x": gone, f".{LOCK}.b": alive, f".{LOCK}.c": elsewhere}
    for name, owner in names.items():
        (tmp_path / name).write_text(json.dumps(asdict(owner)))
    os.mkfifo(tmp_path / f".{LOCK}.a")
    with lock(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {f".{LOCK}.{name}" for name in "abc"}


def start_many(folder: Path, count: int) -> Lock:
    """Lets many threads take a lock at once. Returns the one that got it; it must be one."""
    barrier, taken, refused = threading.Barrier(count), list[Lock](), list[str]()

    def start() -> None:
        one = lock(folder)
        barrier.wait()
        try:
            one.take()
            taken.append(one)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == count - 1
    return taken[0]


@pytest.mark.parametrize("claimants", [0, 1, 2])
def test_one_of_many_that_start_at_once_gets_the_lock(tmp_path: Path, claimants: int) -> None:
    """All of them find the lock of a process that is gone; so may be the ones that were about to take it over."""
    for _ in range(20):
        owners = [replace(this_process(), started="1", token=f"gone{number}") for number in range(claimants + 1)]
        write_owner(tmp_path, owners[0])
        for before, owner in pairwise(owners):
            (tmp_path / f".{LOCK}.after-{before.token}").write_text(json.dumps(asdict(owner)))
        start_many(tmp_path, 8).release()
        assert list(tmp_path.iterdir()) == []


def test_the_owner_of_a_lock_cannot_name_a_file(tmp_path: Path) -> None:
    """Its token is a part of a file's name."""
    owner = asdict(replace(this_process(), started="1"))
    assert parse_owner(json.dumps(owner)) is not None
    assert parse_owner(json.dumps({**owner, "token": "x/../../../y"})) is None


@contextmanager
def alive(folder: Path, by: float = 0.0) -> Iterator[None]:
    """Lets the owner of the lock in a folder renew it, with a clock that is `by` seconds behind."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.05):
            now = time.time() - by
            os.utime(folder / LOCK, (now, now))

    thread = threading.Thread(target=renew)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE", 2.0)
    monkeypatch.setattr(locks, "CONFIRM", 1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("behind", [0.0, 100.0])
def test_a_process_elsewhere_that_renews_its_lock_is_respected(tmp_path: Path, behind: float) -> None:
    """Also if its clock differs."""
    write_owner(tmp_path, elsewhere(job="77"), age=behind)
    with alive(tmp_path, behind), pytest.raises(UserError, match=r"is in use by pid 1 on node1 \(job 77\) since "):
        lock(tmp_path).take()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("age", [0.0, 100.0, -100.0])
def test_a_process_elsewhere_that_does_not_is_gone(tmp_path: Path, age: float) -> None:
    write_owner(tmp_path, elsewhere(job="77"), age)
    with lock(tmp_path):
        pass


@pytest.mark.usefixtures("impatient")
def test_a_process_in_another_container_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    """Process ids mean nothing across PID namespaces: pid 1 here may be alive, and is another one."""
    write_owner(tmp_path, replace(this_process(), namespace="pid:[1]", pid=999_999_999, token="theirs"))
    with alive(tmp_path), pytest.raises(UserError, match="is in use by pid 999999999"):
        lock(tmp_path).take()


@pytest.mark.usefixtures("impatient")
def test_a_requeued_job_takes_its_lock_over_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write_owner(tmp_path, elsewhere())
    with alive(tmp_path), pytest.raises(UserError, match="job 77"):  # two steps of one job
        lock(tmp_path).take()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(time, "sleep", pytest.fail)
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", '{"pid": 1}', "\xff\xfe"])
@pytest.mark.usefixtures("impatient")
def test_a_lock_that_is_unreadable_is_judged_by_its_heartbeat(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_bytes(text.encode("latin-1"))
    words = rf"{LOCK} cannot be read: if no process uses its folder, delete it"
    with alive(tmp_path), pytest.raises(UserError, match=words):
        lock(tmp_path).take()
    with lock(tmp_path):
        pass


def test_no_line_break_of_a_lock_file_reaches_the_terminal() -> None:
    owner = this_process()
    assert parse_owner(json.dumps(asdict(owner))) == owner
    assert parse_owner(json.dumps(asdict(replace(owner, host="a\nb")))) is None
    assert parse_owner(json.dumps(asdict(owner) | {"pid": "1"})) is None


def test_the_owner_renews_its_lock_and_notices_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    lost, errors = threading.Event(), list[UserError]()

    def on_loss(error: UserError) -> None:
        errors.append(error)
        lost.set()

    held = Lock(tmp_path, "stop it", on_loss)
    held.take()
    os.utime(tmp_path / LOCK, (1, 1))
    until = time.monotonic() + 20
    while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / LOCK).stat().st_mtime > 1
    theirs = tmp_path / "theirs"
    theirs.write_text(json.dumps(asdict(elsewhere())))
    os.replace(theirs, tmp_path / LOCK)
    assert lost.wait(20)
    assert "was taken over by pid 1 on node1" in str(errors[0])
    held.release()
    assert (tmp_path / LOCK).exists()  # it is theirs now


def test_without_hard_links_the_lock_is_created_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lock(tmp_path), pytest.raises(UserError, match="is in use"):
        lock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []


def test_the_start_time_tells_two_processes_apart() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid()) != ""
    assert start_time(999_999_999) == ""


def test_nothing_is_left_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, text: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        lock(tmp_path / "new" / "folder").take()
    assert list(tmp_path.iterdir()) == []


def interrupted_at(event: int, action: Callable[[], object]) -> bool:
    """Sends SIGINT to this process at the nth event of Python's profiler in an action; whether there were so many."""
    count = 0

    def send(frame: FrameType, kind: str, argument: object) -> None:
        nonlocal count
        if kind in ("call", "c_return"):  # where Python calls the handlers
            count += 1
            if count == event:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(send)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return count >= event


@pytest.mark.parametrize("state", ["free", "of one that is gone", "claimed by one that is gone"])
def test_nothing_is_left_by_a_process_that_is_interrupted_at_any_moment(tmp_path: Path, state: str) -> None:
    gone = replace(this_process(), started="0", token="theirs")
    folder = tmp_path / "folder"

    def use() -> None:
        with lock(folder):
            assert (folder / LOCK).exists()

    for event in range(1, 10_000, 1 if state == "free" else 3):
        if state != "free":
            folder.mkdir()
            write_owner(folder, gone)
        if state.startswith("claimed"):
            (folder / f".{LOCK}.after-theirs").write_text(json.dumps(asdict(replace(gone, token="other"))))
        if not interrupted_at(event, use):
            break
        locks.release_all()  # as at the end of a process
        left = {path.name for path in tmp_path.rglob("*")}
        assert left <= ({"folder", LOCK, f".{LOCK}.after-theirs"} if state != "free" else set()), event
        if LOCK in left:
            assert parse_owner((folder / LOCK).read_text()) == gone
        shutil.rmtree(folder, ignore_errors=True)
    assert 100 < event < 9_990
