"""`python -m tests.data_tools.killing SOURCE FOLDER KILLS SEED`: prepares a set again and again and is killed at it.

Every run is a fork of this process, which has imported everything and started nothing, so a run costs no imports and
the moments of the kills fall on its work. Prints a JSON list with one word for each run: "killed" or "finished".
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from data_tools.prepare import run
from gen1_train.exits import INCOMPLETE
from tests.data_tools.source import config

TASK_SECONDS = 1.0


def main() -> None:
    source, folder, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    begin = time.monotonic()
    assert finish(start(source, folder / "straight")) == "finished"
    duration = time.monotonic() - begin
    moments, ends = random.Random(seed), []
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
        if (output / "manifest.json").exists():  # the next kills begin anew; the test compares what came out
            number += 1
    assert finish(start(source, folder / f"killed-{number}")) == "finished"
    shutil.rmtree(source)
    print(json.dumps(ends))


def start(source: Path, output: Path) -> int:
    """Forks a run; its process id."""
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
    """How a run ended."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    assert os.WEXITSTATUS(status) in (0, INCOMPLETE), "a run failed by itself"
    return "finished"


if __name__ == "__main__":
    main()
