"""Loader workers that are killed or hang in a run on two processes: a line that names them, and an end in seconds."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gen1_train.training.checkpoint import checkpoints_dir, latest
from gen1_train.training.metrics import read_metrics
from tests.running import ENVIRONMENT, REPOSITORY, command, run_well
from tests.training.runs import stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 40
STALL = 5


def stage_2(root: Path) -> list[str]:
    return stage(root, 2, "failures", f"stage.steps={STEPS}", "checkpoint.every=5", f"data.stall_seconds={STALL}")


def family(group: int) -> dict[int, tuple[int, str]]:
    """The living processes of a process group: pid -> (parent, name)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, parent, own = rest.split()[:3]
        if int(own) == group and state != "Z":
            found[int(path.parent.name)] = int(parent), head.partition("(")[2]
    return found


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"in {seconds} s not: {what}"
        time.sleep(0.02)


def hurt_worker(root: Path, rank: int, signum: int) -> tuple[int, str]:
    """Trains until there is a new checkpoint, sends a signal to a rank's loader worker, and waits for the end.

    Returns the worker's pid, and what the command said on stderr. No process is left then.
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
            for pid, (parent, name) in family(process.pid).items()
            if name == "pt_data_worker" and (parent == process.pid) == (rank == 0)
        ]
        assert len(workers) == 1
        os.kill(workers[0], signum)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 2, said
        wait_for("all processes ended", lambda: not family(process.pid), seconds=10)
    finally:
        if family(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return workers[0], said


def line_of(said: str) -> str:
    """The last line, which is the only one that tells of a mistake."""
    assert "Traceback" not in said and said.count("error") == 1, said
    return said.strip().splitlines()[-1]


def test_a_worker_that_dies_or_stalls_is_named_and_the_run_can_go_on(place: Path) -> None:
    for rank in (0, 1):
        pid, said = hurt_worker(place, rank, signal.SIGKILL)
        line = line_of(said)
        assert line.startswith(f"gen1-train: error: loader worker 0 of rank {rank} (pid {pid}) was killed by signal 9")
        assert " while " in line and "lower data.workers" in line
    pid, said = hurt_worker(place, 1, signal.SIGSTOP)
    worker = f"loader worker 0 of rank 1 (pid {pid})"
    assert line_of(said).startswith(f"gen1-train: error: {worker} has brought nothing for {STALL} s and has been ")
    run_well("gen1_train.train", *stage_2(place))
    found = latest(place / "failures" / "demo" / "stage2")
    assert found is not None and found.info.finished and found.info.step == STEPS
    rows = read_metrics(place / "failures" / "demo" / "stage2" / "metrics.csv")
    assert [(row["step"], row["samples_replaced"]) for row in rows] == [
        (str(step), "0") for step in range(1, STEPS + 1)
    ]
