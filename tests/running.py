"""Calls our commands as a user does: in a process of their own, from some folder, with a deadline."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
# on CPU processes, quietly
TRAIN = [
    "experiment=demo",
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


def run(module: str, *arguments: str, cwd: Path = REPOSITORY, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and returns it; its output is text."""
    return subprocess.run(
        command(module, *arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


def run_well(module: str, *arguments: str, cwd: Path = REPOSITORY) -> str:
    """Runs a command that must succeed; returns what it printed."""
    done = run(module, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def kill_when(module: str, *arguments: str, ready: Callable[[], bool], timeout: float = 240) -> bool:
    """Starts a command and kills it and all its children, as kill -9 does, as soon as `ready` is true.

    False if it had come to its end, and well, before that.
    """
    with started(module, *arguments) as (process, _):
        return come_to(process, ready, timeout)


def signal_when(
    module: str, *arguments: str, ready: Callable[[], bool], send: Callable[[int], None], timeout: float = 240
) -> tuple[int, str]:
    """Starts a command, calls `send` with its pid as soon as `ready` is true; its exit code and all that it said."""
    with started(module, *arguments) as (process, output):
        assert come_to(process, ready, timeout), "the command came to its end before"
        send(process.pid)
        code = process.wait(timeout)
        output.seek(0)
        return code, output.read()


@contextmanager
def started(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], TextIO]]:
    """A command, and the file that its output goes to; at the end it is killed with all its children."""
    with TemporaryFile("w+") as said:  # a pipe that nobody reads fills up
        process = subprocess.Popen(
            command(module, *arguments),
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, said
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def come_to(process: subprocess.Popen[bytes], ready: Callable[[], bool], timeout: float) -> bool:
    """Waits until `ready` is true; False if the process had come to its end, and well, before that."""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None:
            assert process.returncode == 0, f"the command ended with exit code {process.returncode}"
            return False
        assert time.monotonic() < deadline, "the command did not come so far in time"
        time.sleep(0.005)
    return True
