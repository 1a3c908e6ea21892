from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gen1_train.reporting.findings import findings, state
from gen1_train.reporting.run_log import RunLog, read_stage
from tests.reporting.made_runs import write_run

STEPS = np.arange(10, 1010, 10)
QUIET = {
    "loss": np.linspace(1, 0.5, 100),
    "data_wait": np.full(100, 0.03),
    "skipped_steps": np.zeros(100),
    "samples_replaced": np.zeros(100),
    "slowest_excess": np.full(100, 0.05),
    "slowest_rank": np.zeros(100),
    "seconds": np.full(100, 30.0),
}


def log_of(folder: Path, checkpoint: tuple[int, bool] | None = None, **columns: np.ndarray) -> RunLog:
    return read_stage(write_run(folder / "gen1" / "stage4", {**QUIET, **columns}, STEPS, checkpoint=checkpoint))


def put(name: str, values: dict[int, float]) -> dict[str, np.ndarray]:
    changed = QUIET.get(name, np.zeros(100)).copy()
    changed[list(values)] = list(values.values())
    return {name: changed}


def test_a_good_run_has_no_findings(tmp_path: Path) -> None:
    assert list(findings(log_of(tmp_path))) == []


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"data_wait": np.full(100, 0.11)}, "Training waits for data 11% of the time"),
        (put("skipped_steps", {98: 1, 99: 3}), "3 optimizer steps skipped, the last one by step 1,000"),
        (put("skipped_steps", dict.fromkeys(range(40, 100), 1)), "1 optimizer step skipped, the last one by step 410"),
        (put("loss", {41: np.inf, 42: -np.inf}), "loss is not finite in 2 rows, first at step 420"),
        (put("samples_replaced", {3: 1, 70: 2}), "3 samples could not be read and were replaced by others"),
        (
            put("samples_replaced", {3: 1, 70: 2}) | put("replaced_shape", {3: 1}) | put("replaced_read", {70: 2}),
            "3 samples could not be read (1 shape, 2 read) and were replaced",
        ),
        (
            {"slowest_excess": np.full(100, 0.2), "slowest_rank": np.where(np.arange(100) % 3, 5.0, 1.0)},
            "The slowest rank takes 20% longer than the mean, mostly rank 5",
        ),
    ],
)
def test_findings_are_reported(tmp_path: Path, columns: dict[str, np.ndarray], says: str) -> None:
    (line,) = findings(log_of(tmp_path, **columns))
    assert line.startswith(says)


def test_problems_that_are_over_are_not_reported(tmp_path: Path) -> None:
    waits = {"data_wait": np.where(np.arange(100) < 60, 0.5, 0.01)}
    assert list(findings(log_of(tmp_path, **waits))) == []


def test_a_run_of_an_older_version_has_fewer_columns(tmp_path: Path) -> None:
    log = read_stage(write_run(tmp_path / "stage2", {"loss": np.ones(3)}, STEPS[:3]))
    assert list(findings(log)) == [] and state(log, log.changed) == "running"


def test_the_remaining_time_follows_from_the_remaining_steps(tmp_path: Path) -> None:
    """24,000 steps of 3 seconds each."""
    log = log_of(tmp_path, checkpoint=(1000, False))
    assert state(log, log.changed) == "running, 20.0 h left"


def test_a_run_that_writes_no_rows_has_stopped(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    assert state(log, log.changed + timedelta(minutes=9)).startswith("running")
    assert state(log, log.changed + timedelta(hours=3)) == "no row for 3.00 h: stopped"
    slow = log_of(tmp_path / "slow", seconds=np.full(100, 3600.0))
    assert state(slow, slow.changed + timedelta(hours=3)).startswith("running")


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    log = log_of(tmp_path, checkpoint=(25_000, True))
    assert state(log, datetime(2100, 1, 1, tzinfo=UTC)) == "finished"
