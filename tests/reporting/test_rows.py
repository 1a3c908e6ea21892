from pathlib import Path

import pytest

from gen1_train.reporting.rows import read_metrics
from gen1_train.training.callbacks.metrics import MetricsCSV


def test_rows_of_a_step_are_merged(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "lr": 0.5}, step=10)
    log.log_metrics({"loss": 0.5}, step=20)
    log.log_metrics({"val_loss": 0.25, "loss": 0.75}, step=20)
    log.log_metrics({"loss": 0.125}, step=30)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "10", "loss": "1", "lr": "0.5"},
        {"step": "20", "loss": "0.75", "val_loss": "0.25"},
        {"step": "30", "loss": "0.125"},
    ]


def test_a_resume_keeps_both_rows_of_a_step(tmp_path: Path) -> None:
    before = MetricsCSV(tmp_path / "metrics.csv", 0)
    before.log_metrics({"loss": 0.5}, step=20)
    before.log_metrics({"val_loss": 0.25}, step=20)
    after = MetricsCSV(tmp_path / "metrics.csv", 20)
    after.log_metrics({"loss": 0.125}, step=30)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "20", "loss": "0.5", "val_loss": "0.25"},
        {"step": "30", "loss": "0.125"},
    ]


@pytest.mark.parametrize("truncated", ["3", "30,0.1", "30,0.12", "30,0.125,"])
def test_a_truncated_last_line_is_dropped(tmp_path: Path, truncated: str) -> None:
    """Even if it looks complete: 0.12 may have been 0.125."""
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,loss\r\n20,0.5\r\n{truncated}")
    assert read_metrics(path) == [{"step": "20", "loss": "0.5"}]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == []
