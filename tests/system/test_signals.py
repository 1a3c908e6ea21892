"""Signals that ask a process to stop, each test in a separate process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import ENVIRONMENT, REPOSITORY

# the ends of a command of these lines: how it may swallow an exception
COMMAND = """
import ctypes, os, signal, time
def interrupt():
    os.kill(os.getpid(), {number})
    for _ in range(1000):  # Python calls its handler between two of these
        pass
class Finalized:
    def __del__(self):
        interrupt()
def main():
    print("runs", flush=True)
    {body}
    print("finished")
"""
BODIES = {
    "it works": "interrupt()",
    "it sleeps": "time.sleep(60)",
    "in a finalizer": "Finalized(); time.sleep(60)",
    "in a callback of C": "ctypes.CFUNCTYPE(None)(interrupt)(); time.sleep(60)",
    "in a bare except": """
    try:
        interrupt()
    except:
        pass
    time.sleep(60)""",
    "in a bare except at the end": """
    try:
        interrupt()
    except:
        pass""",
    "and it cleans up": """
    try:
        interrupt()
    finally:
        time.sleep(1.5)
        print("cleaned up")""",
}
STOPPED_GRACEFULLY = """
import os
from gen1_train.system.signals import SIGNALS, STOP
STOP.listen()
STOP.graceful = True
for number in SIGNALS:
    os.kill(os.getpid(), number)
print(STOP.signal_name)
"""
CHILD_BLOCKS_SIGNALS = """
import os, signal, subprocess, sys
from gen1_train.system.signals import SIGNALS, STOP, signals_blocked
STOP.listen()
STOP.graceful = True
with signals_blocked():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(os.getpid(), signal.SIGTERM)
    print(STOP.signal_name)
print(STOP.signal_name)
for number in SIGNALS:
    child.send_signal(number)
child.communicate(b"\\n")
print(child.returncode)
"""


def run_code(code: str) -> tuple[int, list[str]]:
    """Runs code in a new process; returns its exit code and the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.split("\n")[:-1]


def begin(folder: Path, text: str, prefix: str = "") -> "subprocess.Popen[str]":
    """Starts a command whose module is this text."""
    (folder / "some_command.py").write_text(text)
    code = f"{prefix}\nfrom gen1_train.cli.start import start; start('gen1-some', 'some_command')"
    path = f"{folder}:{REPOSITORY}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**ENVIRONMENT, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_command_with_one_line(tmp_path: Path, body: str, number: signal.Signals) -> None:
    process = begin(tmp_path, COMMAND.format(number=int(number), body=BODIES[body]))
    if body == "it sleeps":
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        process.send_signal(number)
    out, error = process.communicate(timeout=30)
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert (process.returncode, error) == (128 + number, f"gen1-some: interrupted{by}\n")
    assert ("cleaned up" in out) == ("cleans up" in body)


SWALLOWED = """
import os
try:
    os.kill(os.getpid(), 2)
except BaseException:  # numpy's modules in C clear the exception, and numpy then imports them once more
    raise ImportError("cannot load module more than once per process")
"""


# pybind11 ends the process if an exception is raised while torch initializes its module in C++
IN_TORCH = """
import linecache, signal, sys
from gen1_train.system.signals import STOP
signal.signal(signal.SIGALRM, lambda number, frame: STOP._handle(signal.SIGINT, frame))
def line(frame, event, argument):
    if "_c10d_init()" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # the call takes 5 ms
        sys.settrace(None)
    return line
def function(frame, event, argument):
    return line if frame.f_code.co_filename.endswith("torch/distributed/__init__.py") else None
sys.settrace(function)
import torch
"""
BETWEEN_MODULES = """
import os, sys
os.kill(os.getpid(), 2)
for _ in range(1000):
    pass
assert "this" not in sys.modules
open(os.path.join(os.path.dirname(__file__), "this module is whole"), "w").close()
import this
"""


@pytest.mark.parametrize("text", ["import os; os.kill(os.getpid(), 2)", SWALLOWED, IN_TORCH, BETWEEN_MODULES])
def test_a_signal_during_an_import_ends_a_command_with_one_line(tmp_path: Path, text: str) -> None:
    process = begin(tmp_path, text)
    assert process.communicate(timeout=30) == ("", "gen1-some: interrupted\n") and process.returncode == 130
    assert (tmp_path / "this module is whole").exists() == (text == BETWEEN_MODULES)


@pytest.mark.parametrize("again", [False, True])
def test_an_import_that_does_not_end_is_ended(tmp_path: Path, again: bool) -> None:
    prefix = "" if again else "from gen1_train.system import signals; signals.LONGEST = 1.0"
    process = begin(tmp_path, "import time; print(flush=True); time.sleep(60)", prefix)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    process.send_signal(signal.SIGINT)
    if again:
        time.sleep(2.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "ended without cleaning up\n" and process.returncode == 130


def test_a_second_ctrl_c_ends_a_command_that_does_not_end(tmp_path: Path) -> None:
    body = """
    try:
        interrupt()
    finally:
        time.sleep(60)"""
    process = begin(tmp_path, COMMAND.format(number=2, body=body))
    assert process.stdout is not None and process.stdout.readline() == "runs\n"
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "ended without cleaning up\n" and process.returncode == 130


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    short = "from gen1_train.system import signals; signals.LONGEST = 1.0"
    body = """
    try:
        interrupt()
    finally:
        time.sleep(60)"""
    process = begin(tmp_path, COMMAND.format(number=15, body=body), short)
    assert process.communicate(timeout=30)[1] == "ended without cleaning up\n" and process.returncode == 143


def test_nohup_is_respected(tmp_path: Path) -> None:
    prefix = "import signal; signal.signal(1, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN)"
    process = begin(tmp_path, COMMAND.format(number=1, body="interrupt(); os.kill(os.getpid(), 2)"), prefix)
    assert process.communicate(timeout=30) == ("runs\nfinished\n", "") and process.returncode == 0


def test_the_first_signal_is_recorded_if_there_is_something_to_save():
    assert run_code(STOPPED_GRACEFULLY) == (0, ["SIGUSR1"])


def test_a_child_started_with_signals_blocked_survives_and_the_parent_handles_them_later():
    assert run_code(CHILD_BLOCKS_SIGNALS) == (0, ["None", "SIGTERM", "0"])


def test_no_signal_kills_the_process_while_it_exits():
    """Slurm repeats its signals, and Python removes its handlers before it has finished."""
    code = """
import os, sys
from gen1_train.system.signals import SIGNALS, STOP
STOP.listen()
STOP.ignore()
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=tuple(map(int, SIGNALS)), write=os.write):
        for number in numbers:
            kill(pid, number)
        write(1, b"finished\\n")
sys.last = Last()
"""
    assert run_code(code) == (0, ["finished"])


def test_the_resource_tracker_of_multiprocessing_survives():
    """`signals_blocked` starts it. If it were killed, a new one would not know what it has to remove."""
    code = """
import os, signal
from multiprocessing import resource_tracker
from gen1_train.system.signals import SIGNALS, STOP, signals_blocked
STOP.listen()
with signals_blocked():
    pass
for number in SIGNALS:
    os.kill(resource_tracker._resource_tracker._pid, number)
print(resource_tracker._resource_tracker._check_alive())
"""
    assert run_code(code) == (0, ["True"])
