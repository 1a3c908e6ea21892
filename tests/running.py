"""Calls our commands as a user does: in a process of their own, from some folder, with a deadline."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
    process = subprocess.Popen(
        command(module, *arguments),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    try:
        while not ready():
            if process.poll() is not None:
                assert process.returncode == 0, f"the command ended with exit code {process.returncode}"
                return False
            assert time.monotonic() < deadline, "the command did not come so far in time"
            time.sleep(0.005)
        return True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
