"""A rank hangs in its step while the other one waits for it: both end, and what they did is in the run folder."""

import json
import os
import pickle
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from gen1_train.errors import LOST
from gen1_train.system.heartbeats import PLACE
from gen1_train.training.failures import rank_failure
from gen1_train.training.failures.deadline import MEASURED, Deadline
from gen1_train.training.failures.rank_failure import RankFailure
from tests.training.pair import run_pair, train_small

pytestmark = pytest.mark.slow
LIMIT = 2.0  # seconds that a step may take
PAUSING = threading.Event()
LAST = MEASURED + 2  # the step in which a rank hangs


def watching(run: Path, saved: bool = True) -> RankFailure:
    return RankFailure(lambda: saved, Deadline(2.0, LIMIT, PAUSING.is_set), run)


def hang(rank: int, run: Path) -> None:
    def oversleep(number: int) -> None:
        if number == LAST - 1 and rank == 1:
            time.sleep(600)

    train_small(oversleep, failure=watching(run), steps=LAST)


def test_a_rank_that_hangs_is_named_and_all_stacks_are_written(tmp_path: Path) -> None:
    codes, outputs = run_pair(hang, tmp_path, tmp_path)
    assert codes == [LOST, LOST], outputs
    (line,) = [line for text in outputs for line in text.splitlines() if "error" in line]
    folder = tmp_path / "stuck" / f"step-{LAST:08d}"
    assert line.startswith(f"gen1-train: error: step {LAST} takes longer than {LIMIT:g} s (the median is ")
    assert f"is behind, in the forward pass of micro-batch 1 of step {LAST}, where others are in the backward" in line
    assert line.partition("; ")[2].startswith("rank 1 (")
    assert f"; the stacks of 2 ranks are in {folder}; call the same command again to resume" in line
    assert not any("Traceback" in text for text in outputs)
    waiting, asleep = ((folder / f"rank-{rank:05d}.txt").read_text() for rank in range(2))
    assert asleep.startswith("rank 1 on ") and "in oversleep\n" in asleep and "training_step" in asleep
    assert "in backward\n" in waiting and "in oversleep\n" not in waiting
    for rank in range(2):  # PyTorch's format, which torchfrtrace reads
        entries = pickle.loads((folder / f"collectives-{rank:05d}").read_bytes())["entries"]
        assert entries[-1]["profiling_name"].startswith("gloo:")


def stop(rank: int, victim: int, run: Path) -> None:
    def step(number: int) -> None:
        if number == LAST - 1 and rank == victim:
            places = [json.loads(_get_default_store().get(f"{PLACE}{each}")) for each in range(2)]
            own, other = places[rank][1], places[1 - rank][1]
            wait = f"while grep -q '^State:.[^ZX]' /proc/{other}/status; do sleep 0.2; done"
            subprocess.Popen(["sh", "-c", f"{wait}; kill -9 {own}"], start_new_session=True)  # so that the test ends
            os.kill(own, signal.SIGSTOP)

    rank_failure.SILENCE = 5.0  # in this process
    train_small(step, failure=watching(run, saved=False), steps=LAST)


def test_nobody_waits_for_a_stopped_rank(tmp_path: Path) -> None:
    codes, outputs = run_pair(stop, tmp_path, 1, tmp_path)
    assert codes == [1, -signal.SIGKILL], outputs  # there was no new checkpoint
    (line,) = [line for line in outputs[0].splitlines() if "error" in line]
    assert line.partition("; ")[2].startswith("rank 1 (") and " does not answer; all others are in the backward" in line
    assert [path.name for path in sorted((tmp_path / "stuck").rglob("rank-*"))] == ["rank-00000.txt"]


def test_nobody_waits_for_a_stopped_rank_that_has_the_store(tmp_path: Path) -> None:
    codes, outputs = run_pair(stop, tmp_path, 0, tmp_path)
    assert codes == [-signal.SIGKILL, 1], outputs
    (line,) = [line for line in outputs[1].splitlines() if "error" in line]
    assert "rank 0 (127.0.0.1) is gone: it was killed or stopped" in line


class Pausing(Callback):
    """Does something between two steps, on one rank, for longer than a step may take."""

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == LAST - 1 and trainer.global_rank == 1:
            PAUSING.set()
            time.sleep(3 * LIMIT)
            PAUSING.clear()


def pause(rank: int, run: Path) -> None:
    train_small(lambda number: None, Pausing(), failure=watching(run), steps=LAST)


def test_a_long_pause_between_steps_is_not_late(tmp_path: Path) -> None:
    """A checkpoint or a validation: the other rank waits for it in the collectives of its next step."""
    codes, outputs = run_pair(pause, tmp_path, tmp_path)
    assert codes == [0, 0], outputs
    assert not (tmp_path / "stuck").exists()
