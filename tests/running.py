"""Runs our commands as a user does: each in a process of its own, from some folder, with a deadline.

tests/conftest.py lets them start from tests/forkserver.py, in a fraction of a second.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from tests.forkserver import ENVIRONMENT as ENVIRONMENT  # on CPU processes, with one thread each
from tests.forkserver import REPOSITORY, cold

WEIGHTS = REPOSITORY / "miniature" / "weights"  # the miniature's fitted estimators
# of fewer resolutions than the demo's; its middle has a transformer all the same
UNET = {"channels": [32, 64], "attention": [False, False], "heads": [2, 2]}
# a quiet run on two CPU processes
TRAIN = [
    "experiment=demo",
    *(f"model.{name}={values}".replace(" ", "").lower() for name, values in UNET.items()),
    "data.workers=1",
    "log.wandb=disabled",
    "log.every=1",
    "optim.warmup_steps=2",
    "checkpoint.keep=10",
    "validation.every=0",
    "validation.edit_every=0",
]


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def run(
    module: str, *arguments: str, cwd: Path = REPOSITORY, timeout: float = 240, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. Its output is text. `fresh`: in a new Python process, never a forked one."""
    with cold() if fresh else nullcontext():
        return subprocess.run(
            command(module, *arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
        )


def run_well(module: str, *arguments: str, cwd: Path = REPOSITORY, fresh: bool = False) -> str:
    """Runs a command that has to succeed; returns its standard output."""
    result = run(module, *arguments, cwd=cwd, fresh=fresh)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@contextmanager
def started(words: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], TextIO]]:
    """A running command and the file that its output goes to; in the end it is killed with all its children."""
    with TemporaryFile("w+") as output:  # a pipe that no one reads fills up
        process = subprocess.Popen(
            words,
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, output
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(process: subprocess.Popen[bytes], ready: Callable[[], bool], timeout: float) -> bool:
    """Waits until `ready` is true. Returns False if the process succeeded before that."""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None:
            assert process.returncode == 0, f"the command ended with exit code {process.returncode}"
            return False
        assert time.monotonic() < deadline, f"the command was not ready after {timeout:g} s"
        time.sleep(0.005)
    return True
