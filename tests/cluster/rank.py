"""A rank on one of the hosts: `python -m tests.cluster.rank HOST SETTINGS…` is gen1-train there. HOST is the id of a
process on it.

The fork server, which starts it in a fraction of a second, is outside the hosts, so this process enters one. The rank
can then start no processes of its own through the fork server, which would be outside again: give data.workers=0.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any

from tests.forkserver import LIBC, PR_SET_PDEATHSIG

SILENCE = "GEN1_TEST_SILENCE"  # a variable: seconds, in place of the product's minute
HELD = "GEN1_TEST_HELD"  # a variable, PLACE:FOLDER: the rank makes FOLDER/held there, and waits for FOLDER/go
PLACES = {  # where a rank can be held: module, and class and method or function
    "start": ("gen1_train.training.callbacks.saving", "RestoreState.on_fit_start"),
    "training": ("gen1_train.training.module", "Gen1Module.training_step"),
    "checkpoint": ("gen1_train.training.checkpoints.writer", "write_part"),
}
STEP = 6  # in which it is held in training, and after which in a checkpoint


def enter(host: int) -> None:
    """Continues in the namespaces of a host, in a new process; this one passes signals on, and ends with it."""
    folder = os.getcwd()
    files = [os.open(f"/proc/{host}/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "pid", "mnt")]
    for file in files:
        if LIBC.setns(file, 0):
            raise OSError(ctypes.get_errno(), "the rank cannot enter the host")
        os.close(file)
    os.chdir(folder)
    if child := os.fork():  # only a child is in the PID namespace
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(child, number))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def shorten(silence: float) -> None:
    for module in ("gen1_train.system.heartbeats", "gen1_train.training.failures.rank_failure"):
        importlib.import_module(module).SILENCE = silence  # type: ignore[attr-defined]


def hold(place: str, folder: Path) -> None:
    """Lets this process wait at a place, once. Its other threads run on."""
    module, name = PLACES[place]
    owner = importlib.import_module(module)
    *classes, name = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    function = getattr(owner, name)

    @wraps(function)
    def held(*arguments: Any, **options: Any) -> Any:
        first = arguments[0]
        step = first.global_step + 1 if place == "training" else STEP  # the one that it is about to do
        if place == "checkpoint" and f"step-{STEP:08d}" not in str(first):
            step = 0
        if step == STEP and not (folder / "held").exists():
            (folder / "held").touch()
            while not (folder / "go").exists():
                time.sleep(0.02)
        return function(*arguments, **options)

    setattr(owner, name, held)


def main() -> None:
    enter(int(sys.argv.pop(1)))
    if silence := os.environ.get(SILENCE):
        shorten(float(silence))
    if place := os.environ.get(HELD):
        name, _, folder = place.partition(":")
        hold(name, Path(folder))
    from gen1_train.cli import start

    start.train()


if __name__ == "__main__":
    main()
