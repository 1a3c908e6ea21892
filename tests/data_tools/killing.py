"""Prepares a set again and again and kills the process: `python -m tests.data_tools.killing SOURCE FOLDER KILLS SEED`.

Every run is a fork of this process, which has loaded the networks and started nothing, so that a run spends no time on
imports and the kills hit its work. Prints a JSON list with one word for each run: "killed" or "finished".
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from data_tools.estimate import load_estimators
from data_tools.prepare import run
from gen1_train.errors import INCOMPLETE
from tests.data_tools.small_source import config

TASK_SECONDS = 1.0


def main() -> None:
    source = Path(sys.argv[1])
    folder = Path(sys.argv[2])
    kills = int(sys.argv[3])
    seed = int(sys.argv[4])
    settings = config(source, folder, task_seconds=TASK_SECONDS)
    load_estimators(settings.recipe, settings.device, settings.precision)
    started = time.monotonic()
    assert finish(start(source, folder / "straight")) == "finished"
    duration = time.monotonic() - started
    moments = random.Random(seed)
    ends = []
    number = 0
    while ends.count("killed") < kills:
        output = folder / f"killed-{number}"
        child = start(source, output)
        time.sleep(moments.uniform(0, duration))
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            ends.append(finish(child))
        else:
            ends.append("finished")
        if (output / "manifest.json").exists():  # the next kills start from scratch; the test compares the sets
            assert finish(start(source, output)) == "finished"  # what a kill after the freeze has left is removed
            number += 1
    assert finish(start(source, folder / f"killed-{number}")) == "finished"
    shutil.rmtree(source)
    print(json.dumps(ends))


def start(source: Path, output: Path) -> int:
    """Forks a run and returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = run(config(source, output, task_seconds=TASK_SECONDS))
        finally:
            os._exit(code)
    return child


def finish(child: int) -> str:
    """Waits for a run and returns how it ended."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    assert os.WEXITSTATUS(status) in (0, INCOMPLETE), "a run failed by itself"
    return "finished"


if __name__ == "__main__":
    main()
