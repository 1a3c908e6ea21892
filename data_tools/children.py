"""What every worker process of ours begins with."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def begin_worker() -> None:
    """Makes a worker process end with its parent, however that ends, and leave Ctrl-C to it.

    A ProcessPoolExecutor would let it wait for the next task for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from every worker
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
