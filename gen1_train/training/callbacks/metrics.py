"""metrics.csv in the run folder: the rows that W&B gets, as a plain table that survives a resume."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from gen1_train.reporting.rows import read_metrics
from gen1_train.system.files import append_line, patiently, write_atomically


class MetricsCSV(Logger):
    """Appends a row for each call of log_metrics; readers merge the rows of one step.

    Lightning's CSVLogger deletes the earlier rows when a run is resumed.
    """

    def __init__(self, path: Path, resume_step: int, patience: float = 0.0) -> None:
        """Drops rows after `resume_step` (optimizer steps done), because the run is about to log them again.

        `patience`: seconds for which a full or unreachable disk is waited for, before UserError is raised.
        """
        super().__init__()
        self.path = path
        self.patience = patience
        self._resume_step = resume_step
        self._columns: list[str] = []

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCSV":
        return self

    @property
    @override
    def name(self) -> str:
        return "metrics"

    @property
    @override
    def version(self) -> str:
        return ""

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # the resolved config is in the run folder as config.yaml

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        row = {"step": step, **{name: f"{value:.9g}" for name, value in metrics.items()}}
        patiently(lambda: self._append(row), f"{self.path} cannot be written", self.patience)

    def _append(self, row: dict[str, Any]) -> None:
        """Appends a row completely or not at all. Raises OSError."""
        if not self._columns:
            self._rewrite([old for old in read_metrics(self.path) if int(old["step"]) <= self._resume_step], row)
        elif not set(row) <= set(self._columns) or not self.path.exists():  # the file may be gone with its disk
            self._rewrite(read_metrics(self.path), row)
        append_line(self.path, _table(self._columns, [row], header=False).rstrip("\r\n"))

    def _rewrite(self, rows: list[dict[str, str]], new: dict[str, Any]) -> None:
        """Rewrites the table with the columns of its rows and of a new row, which the caller then appends."""
        columns = list(dict.fromkeys(name for row in (*rows, new) for name in row))
        write_atomically(self.path, _table(columns, rows, header=True).encode())
        self._columns = columns


def _table(columns: list[str], rows: list[dict[str, Any]], header: bool) -> str:
    """Returns rows as lines of CSV."""
    lines: list[str] = []
    writer = csv.DictWriter(_Lines(lines), columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return "".join(lines)


class _Lines:
    """A file-like object that collects the lines that csv writes."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append
