"""Worker processes: they end with their parent, and Ctrl-C while they start waits, whichever thread it reaches."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gen1_train.children import interrupts_wait
from tests.running import REPOSITORY
from tests.video.files import is_alive


def test_ctrl_c_waits_for_the_end_of_the_block_though_another_thread_takes_it():
    done, stop = False, threading.Event()

    def work() -> None:  # begun before the block, as a queue's feeder: it does not block SIGINT
        while not stop.is_set():
            time.sleep(0.001)

    other = threading.Thread(target=work)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            with interrupts_wait():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)  # Python would call the handler in here
                done = True
            pytest.fail("the interrupt is lost")
    finally:
        stop.set()
        other.join()
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_without_ctrl_c_leaves_the_handler():
    before = signal.getsignal(signal.SIGINT)
    with interrupts_wait():
        pass
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "import operator, os, signal; from gen1_train.children import worker_pool\n"
        "with worker_pool(operator.call, [os.getpid], 1, 'start again', int) as (made,):\n"
        "    print(made.result(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, timeout=120)
    worker = int(killed.stdout)
    until = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(worker)
