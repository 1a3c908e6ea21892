"""`python -m tests.probe`: prints what a process finds, as JSON, or does what its first argument says."""

import json
import multiprocessing.process
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any


def state() -> dict[str, Any]:
    """All that a process inherits from its parent, and whether it has imported torch already."""
    main = sys.modules["__main__"]
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": sys.executable,
        "flags": list(sys.flags),
        "path": sys.path,
        "main": [
            main.__name__,
            getattr(main.__spec__, "name", None),
            main.__dict__.get("__file__"),
            sorted(vars(main)),
        ],
        "warnings": sys.warnoptions,
        "folders": [os.getcwd(), multiprocessing.process.ORIGINAL_DIR, tempfile.gettempdir()],  # type: ignore[attr-defined]
        "environment": dict(os.environ),
        "parent": os.getppid(),
        "group": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "streams": [[s.encoding, s.errors, s.line_buffering, s.write_through, s.fileno()] for s in streams],
        "handlers": {number.name: repr(signal.getsignal(number)) for number in signal.Signals},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": [len(os.listdir("/proc/self/task")), threading.current_thread() is threading.main_thread()],
        "open": os.listdir("/proc/self/fd"),
        "command line": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode().split("\0"),
        "imported torch": "torch" in sys.modules,
    }


def state_of_worker() -> dict[str, Any]:
    """Without what differs from worker to worker."""
    return {name: value for name, value in state().items() if name not in ("open", "orig_argv", "main", "streams")}


def worker_ranks(numbers: "Queue[int]", rank: int) -> None:
    numbers.put(rank)
    sys.exit(rank)


def print_state(*_: object) -> None:
    print(json.dumps(state()), flush=True)


def main() -> None:
    match sys.argv[1:2]:
        case ["raise"]:
            print("before", end="")
            raise ValueError("a bug")
        case ["exit"]:
            print("exits")
            sys.exit(int(sys.argv[2]))
        case ["message"]:
            sys.exit("a message")
        case ["return"]:
            print("returns")
        case ["wait"]:
            print("waits", flush=True)
            time.sleep(60)
        case ["start"]:
            print(os.getpid(), flush=True)
            subprocess.run([sys.executable, "-m", "tests.probe"], check=True)
            worker = get_context("spawn").Process(target=print_state)
            worker.start()
            worker.join()
        case _:
            print_state()


if __name__ == "__main__":
    main()
