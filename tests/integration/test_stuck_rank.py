"""A rank that stops responding in a run on two processes: the run ends, leaves stacks, and can be resumed."""

import os
import signal
from pathlib import Path

import pytest

from gen1_train.errors import LOST
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir, latest
from tests.integration.test_loader_failures import error_line, processes_of, wait_for
from tests.running import command, run_well, started
from tests.training.runs import stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 40
LIMIT = 4  # seconds


def test_a_stopped_rank_ends_the_run_which_can_be_resumed(run_root: Path) -> None:
    deadline = [f"trainer.step_deadline_seconds={LIMIT}", "trainer.step_deadline=2"]
    settings = stage(run_root, 2, "stuck", f"stage.steps={STEPS}", "checkpoint.every=12", *deadline)
    run = run_root / "stuck" / "demo" / "stage2"
    with started(command("gen1_train.train", *settings)) as (process, output):
        wait_for("a checkpoint", lambda: any(checkpoints_dir(run).glob("step-*")))
        workers = [parent for parent, name in processes_of(process.pid).values() if name == "pt_data_worker"]
        (rank_1,) = set(workers) - {process.pid}
        os.kill(rank_1, signal.SIGSTOP)
        process.wait(timeout=60)
        wait_for("the end of all processes", lambda: not processes_of(process.pid), seconds=10)
        output.seek(0)
        line = error_line(output.read())
    assert process.returncode == LOST, line
    assert f" takes longer than {LIMIT} s (the median is " in line
    assert f"; rank 1 ({os.uname().nodename}, pid {rank_1}) does not answer; all others are in " in line
    (stacks,) = (run / "stuck").rglob("rank-*.txt")
    assert f"the stacks of rank 0 are in {stacks.parent};" in line and " in fit\n" in stacks.read_text()
    run_well("gen1_train.train", *settings)
    checkpoint = latest(run)
    assert checkpoint is not None and checkpoint.info.finished and checkpoint.info.step == STEPS
