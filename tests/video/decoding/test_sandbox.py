"""The child may hang, crash, exhaust its memory or be abandoned: the parent does not wait, and the child ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gen1_train.video.decoding.sandbox import Sandbox, SandboxError
from gen1_train.video.errors import VideoError
from tests.running import REPOSITORY
from tests.video.files import is_alive

WORKER = "tests.video.decoding.sandbox_worker"
MIB = 1 << 20


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(WORKER)
    yield sandbox
    sandbox.close()


def child(sandbox: Sandbox) -> int:
    assert sandbox._process is not None
    return sandbox._process.pid


def ask(sandbox: Sandbox, do: str, **request: object) -> list[dict]:
    return [header for header, _ in sandbox.stream({"do": do, **request})]


def works(sandbox: Sandbox) -> bool:
    return ask(sandbox, "echo", text="ä\udcff") == [{"do": "echo", "text": "ä\udcff"}]


def ends(pid: int) -> bool:
    """Waits for a process to end; returns whether it has."""
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_the_answers_of_a_handler_arrive_unchanged(sandbox: Sandbox) -> None:
    dtypes = ["uint8", "int64", "float32", "bool", ">u2"]
    *answers, (_, empty) = sandbox.stream({"do": "arrays", "dtypes": dtypes})
    for i, (header, array) in enumerate(answers):
        assert header == {"i": i} and array is not None and array.dtype == dtypes[i]
        np.testing.assert_array_equal(array, np.arange(24).astype(dtypes[i]).reshape(2, 3, 4)[:, ::-1])
    assert empty is not None and empty.shape == (0, 5)


def test_one_child_serves_many_requests(sandbox: Sandbox) -> None:
    assert works(sandbox)
    pid = child(sandbox)
    assert works(sandbox) and child(sandbox) == pid
    sandbox.close()
    assert not is_alive(pid)
    assert works(sandbox) and child(sandbox) != pid


@pytest.mark.parametrize("transient", [True, False])
@pytest.mark.parametrize("unsupported", [True, False])
def test_a_video_error_arrives_unchanged(sandbox: Sandbox, transient: bool, unsupported: bool) -> None:
    with pytest.raises(VideoError, match=r"^it is green$") as caught:
        ask(sandbox, "fail", **{"with": "VideoError", "transient": transient, "unsupported": unsupported})
    assert (caught.value.transient, caught.value.unsupported) == (transient, unsupported)
    assert not isinstance(caught.value, SandboxError)


@pytest.mark.parametrize(("name", "transient"), [("KeyError", False), ("OSError", True)])
def test_any_other_error_becomes_a_video_error_with_its_type(sandbox: Sandbox, name: str, transient: bool) -> None:
    assert works(sandbox)
    pid = child(sandbox)
    with pytest.raises(VideoError, match=f"^{name}: .*it is blue") as caught:
        ask(sandbox, "fail", **{"with": name})
    assert caught.value.transient == transient
    assert works(sandbox) and child(sandbox) == pid  # an error does not end the child


def test_a_crash_is_transient_and_the_next_request_gets_a_new_child(sandbox: Sandbox) -> None:
    stream = sandbox.stream({"do": "crash"})
    next(stream)
    pid = child(sandbox)
    with pytest.raises(SandboxError, match=r"crashed \(SIGSEGV") as caught:
        next(stream)
    assert caught.value.transient and not is_alive(pid)
    assert works(sandbox)


def test_a_child_that_is_killed_between_requests_is_replaced(sandbox: Sandbox) -> None:
    assert works(sandbox)
    assert sandbox._process is not None
    os.kill(child(sandbox), signal.SIGKILL)
    sandbox._process.wait(10)  # until all of its threads have ended, not only the first
    assert works(sandbox)


def test_a_child_that_hangs_is_killed_at_the_deadline(sandbox: Sandbox) -> None:
    sandbox.deadline = 1
    stream = sandbox.stream({"do": "stuck"})
    next(stream)
    pid = child(sandbox)
    with pytest.raises(SandboxError, match="no answer from the decoding process for 1 s") as caught:
        next(stream)
    assert caught.value.transient and not is_alive(pid)
    assert works(sandbox)


@pytest.mark.slow
def test_heartbeats_restart_the_deadline(sandbox: Sandbox) -> None:
    sandbox.deadline = 3
    assert ask(sandbox, "slow", seconds=4.5, alive=True) == [{}]
    with pytest.raises(SandboxError, match="no answer"):
        ask(sandbox, "slow", seconds=60, alive=False)


def test_exceeding_the_memory_limit_ends_a_child_during_one_call() -> None:
    sandbox = Sandbox(WORKER, memory=200 * MIB)
    assert works(sandbox)
    pid = child(sandbox)
    with pytest.raises(SandboxError, match="used more than 200 MiB of memory") as caught:
        ask(sandbox, "allocate", bytes=300 * MIB, sleep=60)
    assert caught.value.transient and not is_alive(pid)
    assert works(sandbox)
    sandbox.close()


def test_the_system_refuses_a_huge_allocation() -> None:
    sandbox = Sandbox(WORKER, memory=200 * MIB)
    with pytest.raises(SandboxError, match="used more than 200 MiB"):
        ask(sandbox, "reserve", bytes=1 << 40)
    sandbox.close()


def test_a_large_child_is_not_kept() -> None:
    sandbox = Sandbox(WORKER, memory=400 * MIB)
    (answer,) = ask(sandbox, "allocate", bytes=250 * MIB, sleep=0)
    assert not is_alive(answer["pid"])
    assert works(sandbox)
    sandbox.close()


def test_a_stream_that_is_closed_early_does_not_disturb_the_next(sandbox: Sandbox) -> None:
    stream = sandbox.stream({"do": "many", "count": 1000})
    pid = next(stream)[0]["pid"]
    stream.close()
    assert ends(pid)
    assert works(sandbox)
    for i, (header, array) in enumerate(sandbox.stream({"do": "many", "count": 3})):
        assert array is not None and header["i"] == i and (array == i).all()


def test_two_streams_at_once_are_refused(sandbox: Sandbox) -> None:
    first = sandbox.stream({"do": "many", "count": 3})
    next(first)
    with pytest.raises(RuntimeError, match="still open"):
        works(sandbox)
    assert len(list(first)) == 2
    assert works(sandbox)


def test_signals_are_left_to_the_parent(sandbox: Sandbox) -> None:
    assert works(sandbox)
    pid = child(sandbox)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert works(sandbox) and child(sandbox) == pid


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(SandboxError, match=r"No module named tests.nothing|tests.nothing"):
        ask(Sandbox("tests.nothing"), "echo")


def test_the_child_ends_with_its_sandbox() -> None:
    sandbox = Sandbox(WORKER)
    assert works(sandbox)
    pid = child(sandbox)
    del sandbox
    assert not is_alive(pid)


def test_a_fork_starts_its_own_child(sandbox: Sandbox) -> None:
    assert works(sandbox)
    pid = child(sandbox)
    fork = os.fork()
    if fork == 0:
        status = 1
        try:
            status = 0 if works(sandbox) and child(sandbox) != pid else 1
            sandbox.close()
        finally:
            os._exit(status)
    assert os.waitpid(fork, 0)[1] == 0
    assert is_alive(pid)
    assert works(sandbox) and child(sandbox) == pid


def test_the_child_ends_with_a_killed_parent() -> None:
    script = (
        "import time; from gen1_train.video.decoding.sandbox import Sandbox; "
        f"s = Sandbox({WORKER!r}); list(s.stream(dict(do='echo'))); print(s._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # it cannot even notice that its socket is closed
    parent.kill()
    parent.wait()
    os.kill(pid, signal.SIGCONT)
    assert ends(pid)
    parent.stdout.close()


@pytest.mark.parametrize("safe", ["", "1"])
def test_the_child_starts_from_any_folder(tmp_path: Path, safe: str) -> None:
    """Modules in the working directory shadow nothing, and the child has the sys.path of the parent."""
    for name in ("numpy", "json", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    script = (
        f"import sys; sys.path[:] = [p for p in sys.path if p] + [{str(REPOSITORY)!r}]; "
        "from gen1_train.video.decoding.sandbox import Sandbox; "
        f"s = Sandbox({WORKER!r}); print(list(s.stream(dict(do='echo')))); s.close()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONSAFEPATH": safe} if safe else {}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[({'do': 'echo'}, None)]"
