import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen1_train.errors import UserError
from gen1_train.reporting.rows import read_metrics
from gen1_train.system import files
from gen1_train.training.callbacks import metrics
from gen1_train.training.callbacks.metrics import MetricsCSV


def test_rows_and_new_columns(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "epoch": 0}, step=1)
    log.log_metrics({"loss": 0.5, "loss_image": 0.25}, step=2)
    log.log_metrics({"loss": 0.125}, step=3)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "1"},
        {"step": "2", "loss": "0.5", "loss_image": "0.25"},
        {"step": "3", "loss": "0.125"},
    ]


def test_a_resume_drops_the_rows_that_it_will_log_again(tmp_path):
    before = MetricsCSV(tmp_path / "metrics.csv", 0)
    for step in (10, 20, 30):
        before.log_metrics({"loss": 1.0}, step=step)
    after = MetricsCSV(tmp_path / "metrics.csv", 20)
    after.log_metrics({"loss": 2.0}, step=30)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.csv")] == [
        ("10", "1"),
        ("20", "1"),
        ("30", "2"),
    ]


def test_a_line_that_a_kill_truncated_is_dropped(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0}, step=10)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("2")  # of "20,0.9"
    after = MetricsCSV(tmp_path / "metrics.csv", 10)
    after.log_metrics({"loss": 0.5}, step=20)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["10", "20"]


@pytest.mark.parametrize("torn", ["2", "20,0.", "20,0.9,0.2"])  # of "20,0.9,0.25"
def test_no_part_of_a_truncated_line_is_read(tmp_path, torn):
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "lr": 0.5}, step=10)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write(torn)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["10"]


def test_rows_of_one_step_are_merged(tmp_path):
    """Validation logs at a step that may or may not have a row."""
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0, "lr": 0.5}, step=10)
    log.log_metrics({"val_loss": 2.0}, step=10)
    log.log_metrics({"val_loss": 3.0}, step=15)
    log.log_metrics({"loss": 0.25, "val_loss": 4.0}, step=15)
    wanted = [
        {"step": "10", "loss": "1", "lr": "0.5", "val_loss": "2"},
        {"step": "15", "loss": "0.25", "val_loss": "4"},
    ]
    assert read_metrics(tmp_path / "metrics.csv") == wanted
    MetricsCSV(tmp_path / "metrics.csv", 15).log_metrics({"loss": 0.125}, step=20)
    assert read_metrics(tmp_path / "metrics.csv") == [*wanted, {"step": "20", "loss": "0.125"}]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 4  # the header and three rows


def failing_for(times: int, number: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the first `times` appends write half a line and then fail. Returns the waits, which take no time here."""
    left, waits, plain = [times], list[float](), open

    class Failing:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *exception: object) -> None:
            self.stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def write(self, data: bytes) -> None:
            if not left[0]:
                self.stream.write(data)
                return
            left[0] -= 1
            self.stream.write(data[: len(data) // 2])
            self.stream.flush()
            raise OSError(number, os.strerror(number))

    def opening(path: Any, mode: str = "r", *more: Any, **others: Any) -> Any:
        stream = plain(path, mode, *more, **others)
        return Failing(stream) if mode == "ab" else stream

    monkeypatch.setattr(files, "open", opening, raising=False)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE, errno.EIO])
def test_a_row_waits_for_the_disk_and_is_written_once(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv", 0, patience=100)
    log.log_metrics({"loss": 1.0, "lr": 0.5}, step=10)
    waits = failing_for(3, number, monkeypatch)
    log.log_metrics({"loss": 0.25, "lr": 0.125}, step=20)
    log.log_metrics({"loss": 0.5}, step=30)
    assert waits == [10, 10, 10]
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "10", "loss": "1", "lr": "0.5"},
        {"step": "20", "loss": "0.25", "lr": "0.125"},
        {"step": "30", "loss": "0.5"},
    ]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 4
    [warning] = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert f"metrics.csv cannot be written ({os.strerror(number)}): trying again every 10 s" in warning


def test_a_disk_that_stays_full_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv", 0, patience=0)
    log.log_metrics({"loss": 1.0}, step=10)
    failing_for(10, errno.ENOSPC, monkeypatch)
    with pytest.raises(UserError, match=r"metrics\.csv cannot be written \(No space left on device\): free some space"):
        log.log_metrics({"loss": 0.5}, step=20)
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": "10", "loss": "1"}]


def test_a_table_that_vanished_with_its_disk_gets_a_header_again(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv", 0)
    log.log_metrics({"loss": 1.0}, step=10)
    (tmp_path / "metrics.csv").unlink()
    log.log_metrics({"loss": 0.5}, step=20)
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": "20", "loss": "0.5"}]


@pytest.mark.parametrize("name", ["write_atomically", "append_line"])
def test_a_new_column_waits_for_the_disk_too(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv", 0, patience=100)
    log.log_metrics({"loss": 1.0}, step=10)
    waits = fail_first(metrics, name, monkeypatch)
    log.log_metrics({"val_loss": 2.0}, step=10)
    assert waits == [10]
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": "10", "loss": "1", "val_loss": "2"}]


def fail_first(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the first call of a function fail with ESTALE. Returns the waits, which take no time here."""
    real: Callable[..., Any] = getattr(module, name)
    waits, failed = list[float](), list[bool]()

    def failing(*arguments: Any) -> Any:
        if not failed:
            failed.append(True)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*arguments)

    monkeypatch.setattr(module, name, failing)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits
