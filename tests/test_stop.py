"""Signals that ask to stop, in processes of their own."""

import signal
import subprocess
import sys

import pytest

from tests.running import ENVIRONMENT, REPOSITORY

EARLY = """
import os, signal, time
from gen1_train.stop import STOP
STOP.listen()
os.kill(os.getpid(), {number})
print("lives on")
"""
LATE = """
import os
from gen1_train.stop import SIGNALS, STOP
STOP.listen()
STOP.waits = True
for number in SIGNALS:
    os.kill(os.getpid(), number)
print(STOP.by)
"""
CHILD = """
import os, signal, subprocess, sys
from gen1_train.stop import SIGNALS, STOP, deaf
STOP.listen()
STOP.waits = True
with deaf():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(os.getpid(), signal.SIGTERM)
    print(STOP.by)
print(STOP.by)
for number in SIGNALS:
    child.send_signal(number)
child.communicate(b"\\n")
print(child.returncode)
"""


def said(code: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_where_nothing_is_to_be_saved_the_process_ends(number):
    assert said(EARLY.format(number=int(number))) == (128 + number, [])


def test_where_something_is_the_first_signal_is_kept():
    assert said(LATE) == (0, ["SIGUSR1"])


def test_what_is_started_deaf_lives_on_and_this_process_hears_it_afterwards():
    assert said(CHILD) == (0, ["None", "SIGTERM", "0"])


def test_at_the_very_end_nothing_kills_the_process():
    """Slurm asks again and again; Python's own handlers are gone before atexit's last function has run."""
    code = """
import os, sys
from gen1_train.stop import SIGNALS, STOP
STOP.listen()
STOP.end()
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=tuple(map(int, SIGNALS)), write=os.write):
        for number in numbers:
            kill(pid, number)
        write(1, b"was here\\n")
sys.last = Last()
"""
    assert said(code) == (0, ["was here"])


def test_multiprocessings_tracker_lives_on():
    """It is started by `listen`: killed, it would be started again, and know nothing of what it has to remove."""
    code = """
import os, signal
from multiprocessing import resource_tracker
from gen1_train.stop import SIGNALS, STOP
STOP.listen()
for number in SIGNALS:
    os.kill(resource_tracker._resource_tracker._pid, number)
print(resource_tracker._resource_tracker._check_alive())
"""
    assert said(code) == (0, ["True"])
