"""Ctrl-C while processes start: it waits, whichever thread the signal reaches."""

import os
import signal
import threading
import time

import pytest

from gen1_train.children import interrupts_wait


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
