"""metrics.csv in the run folder: what W&B gets, as a plain table that survives a resume."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from gen1_train.files import write_atomically
from gen1_train.training.rows import read_metrics


class MetricsCSV(Logger):
    """Appends a row for everything that is logged; rows of one step are one to those who read them.

    Lightning's CSVLogger deletes the earlier rows when a run is resumed.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        """Rows after `resume_step` (optimizer steps done) are dropped: the run is about to make them again."""
        super().__init__()
        self.path = path
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
        if not self._columns:
            self._rewrite([old for old in read_metrics(self.path) if int(old["step"]) <= self._resume_step], row)
        elif not set(row) <= set(self._columns):
            self._rewrite(read_metrics(self.path), row)
        with open(self.path, "a", newline="") as stream:
            csv.DictWriter(stream, self._columns, restval="").writerow(row)

    def _rewrite(self, rows: list[dict[str, str]], new: dict[str, Any]) -> None:
        """Writes the table again with the columns of its rows and of a new row, which is appended after."""
        self._columns = list(dict.fromkeys(name for row in (*rows, new) for name in row))
        lines: list[str] = []
        writer = csv.DictWriter(_Lines(lines), self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, "".join(lines).encode())


class _Lines:
    """Collects what csv writes."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append
