"""Loader workers that are killed or hang in a run on two processes: one line names them, and the run ends at once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir, latest
from tests.running import ENVIRONMENT, REPOSITORY, command, run_well
from tests.training.runs import stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 40
STALL = 5


def stage_2(root: Path) -> list[str]:
    return stage(root, 2, "failures", f"stage.steps={STEPS}", "checkpoint.every=5", f"data.stall_seconds={STALL}")


def processes_of(group: int) -> dict[int, tuple[int, str]]:
    """The living processes of a process group: (parent, name) by process id."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, parent, own = rest.split()[:3]
        if int(own) == group and state != "Z":
            processes[int(path.parent.name)] = int(parent), head.partition("(")[2]
    return processes


def wait_for(event: str, has_come: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not has_come():
        assert time.monotonic() < deadline, f"not within {seconds} s: {event}"
        time.sleep(0.02)


def signal_worker(root: Path, rank: int, signum: int) -> tuple[int, str]:
    """Trains until there is a new checkpoint, sends a signal to a rank's loader worker, and waits for the end.

    Returns the worker's process id, and the command's standard error. No process is left then.
    """
    run = root / "failures" / "demo" / "stage2"
    known = set(checkpoints_dir(run).glob("step-*"))
    process = subprocess.Popen(
        command("gen1_train.train", *stage_2(root)),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for("a checkpoint", lambda: set(checkpoints_dir(run).glob("step-*")) > known)
        workers = [
            pid
            for pid, (parent, name) in processes_of(process.pid).items()
            if name == "pt_data_worker" and (parent == process.pid) == (rank == 0)
        ]
        assert len(workers) == 1
        os.kill(workers[0], signum)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 2, errors
        wait_for("the end of all processes", lambda: not processes_of(process.pid), seconds=10)
    finally:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return workers[0], errors


def error_line(errors: str) -> str:
    """The last line, which is the only one about a mistake."""
    assert "Traceback" not in errors and errors.count("error") == 1, errors
    return errors.strip().splitlines()[-1]


def test_a_worker_that_dies_or_stalls_is_named_and_the_run_can_be_resumed(run_root: Path) -> None:
    for rank in (0, 1):
        pid, errors = signal_worker(run_root, rank, signal.SIGKILL)
        line = error_line(errors)
        assert line.startswith(f"gen1-train: error: loader worker 0 of rank {rank} (pid {pid}) was killed by signal 9")
        assert " while " in line and "lower data.workers" in line
    pid, errors = signal_worker(run_root, 1, signal.SIGSTOP)
    stalled = f"loader worker 0 of rank 1 (pid {pid}) has delivered nothing for {STALL} s and has been "
    assert error_line(errors).startswith(f"gen1-train: error: {stalled}")
    run_well("gen1_train.train", *stage_2(run_root))
    checkpoint = latest(run_root / "failures" / "demo" / "stage2")
    assert checkpoint is not None and checkpoint.info.finished and checkpoint.info.step == STEPS
    rows = read_metrics(run_root / "failures" / "demo" / "stage2" / "metrics.csv")
    assert [(row["step"], row["samples_replaced"]) for row in rows] == [
        (str(step), "0") for step in range(1, STEPS + 1)
    ]
