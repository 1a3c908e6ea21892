"""Worker processes end with their parent, Ctrl-C is deferred while they start, and a rank ends without finalizing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gen1_train.errors import INTERRUPTED, UserError
from gen1_train.system.processes import worker_pool
from gen1_train.system.signals import interrupts_deferred
from tests.forkserver import cold
from tests.running import REPOSITORY
from tests.video.files import is_alive


def test_ctrl_c_is_deferred_to_the_end_of_the_block_even_if_another_thread_receives_it():
    completed = False
    stop = threading.Event()

    def work() -> None:  # started before the block, like a queue's feeder thread: it does not block SIGINT
        while not stop.is_set():
            time.sleep(0.001)

    other = threading.Thread(target=work)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            with interrupts_deferred():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)  # Python would call the handler here
                completed = True
            pytest.fail("the interrupt is lost")
    finally:
        stop.set()
        other.join()
    assert completed and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_without_ctrl_c_restores_the_handler():
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is handler


def kill_this_process(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_reported_with_the_remedy() -> None:
    with (
        pytest.raises(UserError, match=r"^a worker process was killed \(out of memory\?\): use fewer workers$"),
        worker_pool(kill_this_process, [1], 1, "use fewer workers", int) as (future,),
    ):
        future.result()


@pytest.mark.slow
def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "import operator, os, signal; from gen1_train.system.processes import worker_pool\n"
        "with worker_pool(operator.call, [os.getpid], 1, 'start again', int) as (future,):\n"
        "    print(future.result(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, timeout=120)
    worker = int(killed.stdout)
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(75)", 75),
        ("sys.exit()", 0),
        ("raise ZeroDivisionError", 1),
        ("raise KeyboardInterrupt", INTERRUPTED),
    ],
)
def test_a_process_ends_after_its_exit_handlers_without_finalizing(end: str, code: int) -> None:
    """What finalization would do first is to delete the objects of the main module."""
    program = f"""
import atexit, sys
from gen1_train.system.processes import run_without_finalizing

class Finalized:
    def __del__(self):
        print("finalized", flush=True)

kept = Finalized()
def main():
    atexit.register(print, "handler")
    print("main")
    {end}
run_without_finalizing(main)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "main\nhandler\n"), done.stderr


def test_a_process_that_nobody_reads_ends_all_the_same() -> None:
    program = "from gen1_train.system.processes import *; run_without_finalizing(lambda: print('x' * 2**20))"
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) in (0, 1)


RANK = """
import time
from gen1_train.system.processes import end_with_launcher
end_with_launcher()
print('up', flush=True)
time.sleep(60)
"""
LAUNCHERS = {
    True: "with ranks_end_with_this_process(): process = subprocess.Popen(RANK)",
    False: "process = subprocess.Popen(RANK)",
}


@pytest.mark.parametrize("marked", LAUNCHERS)
def test_a_rank_ends_with_its_launcher_and_no_other_process_does(marked: bool) -> None:
    program = f"""
import subprocess, sys, time
from gen1_train.system.processes import ranks_end_with_this_process
RANK = [sys.executable, "-c", {RANK!r}]
{LAUNCHERS[marked]}
print(process.pid, flush=True)
time.sleep(60)
"""
    with cold(), subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert launcher.stdout.readline() == b"up\n"
        launcher.kill()
        until = time.monotonic() + (10 if marked else 2)
        while is_alive(pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert is_alive(pid) is not marked
        if not marked:
            os.kill(pid, signal.SIGKILL)
