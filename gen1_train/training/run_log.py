"""What a run folder tells without loading any of it: rows, settings, the newest checkpoint, validation videos."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gen1_train.errors import UserError
from gen1_train.training.rows import read_metrics

METRICS, CONFIG = "metrics.csv", "config.yaml"


@dataclass(frozen=True)
class Column:
    """The rows that have a cell of a column."""

    steps: np.ndarray  # int64 (n,), ascending
    values: np.ndarray  # float64 (n,); may be nan or infinite


@dataclass(frozen=True)
class RunLog:
    """One stage's run folder."""

    folder: Path
    columns: dict[str, Column]
    steps: np.ndarray  # int64 (n,): of all rows
    changed: datetime  # when the last row was written
    config: str | None  # config.yaml as it stands
    settings: dict[str, Any]  # what it says; empty where it is missing or cannot be read
    checkpoint: int | None  # step of the newest
    finished: bool  # the newest checkpoint is the stage's last

    @property
    def name(self) -> str:
        """Of the run tree, or of the folder's folder where the settings do not say."""
        return str(self.settings.get("name") or self.folder.resolve().parent.name)

    @property
    def stage(self) -> str:
        return str(self._stage.get("name") or self.folder.resolve().name.removeprefix("stage"))

    @property
    def last_step(self) -> int:
        return int(self.steps[-1])

    @property
    def planned(self) -> int | None:
        """Steps of the whole stage."""
        steps = self._stage.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def _stage(self) -> dict[str, Any]:
        stage = self.settings.get("stage")
        return stage if isinstance(stage, dict) else {}

    def values(self, name: str) -> np.ndarray:
        """float64 (n,): of a column's rows; empty if there is none."""
        return self.columns[name].values if name in self.columns else np.empty(0)

    @property
    def seconds_per_step(self) -> float | None:
        """Median of the last rows, so that one with a checkpoint or a restart in it does not count for more."""
        column = self.columns.get("seconds")
        if column is None:
            return None
        taken = np.diff(column.steps, prepend=0)
        each = column.values[-20:] / taken[-20:]
        return float(np.median(each)) if np.isfinite(each).all() else None


def read_run(path: Path) -> list[RunLog]:
    """The stages of a run tree in their order, or the one whose folder it is. Raises UserError.

    Stages without a metrics.csv (stage 1 trains nothing) are passed over.
    """
    if not path.is_dir():
        raise UserError(f"report={path}: there is no such folder; give a run folder, runs/NAME/stageN, or runs/NAME")
    if (path / METRICS).exists():
        return [read_stage(path)]
    stages = sorted((file.parent for file in path.glob(f"*/{METRICS}")), key=_order)
    if not stages:
        raise UserError(f"report={path}: no {METRICS} in it or in its stages yet: a run writes it with its first row")
    return [read_stage(folder) for folder in stages]


def _order(folder: Path) -> tuple[int, str]:
    """Numbered stages by their number, then those with names."""
    number = folder.name.removeprefix("stage")
    return (int(number), "") if number.isdecimal() else (1 << 30, number)


def read_stage(folder: Path) -> RunLog:
    """Reads one run folder. Raises UserError when its metrics.csv has no rows or is damaged."""
    path = folder / METRICS
    try:
        rows = read_metrics(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it") from error
    if not rows:
        raise UserError(f"{path} has no whole row yet: wait for the run's first one")
    config = _read_text(folder / CONFIG)
    checkpoint, finished = _newest_checkpoint(folder)
    steps, columns = _columns(path, rows)
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return RunLog(folder, columns, steps, changed, config, _settings(config), checkpoint, finished)


def _columns(path: Path, rows: Sequence[dict[str, str]]) -> tuple[np.ndarray, dict[str, Column]]:
    """The steps of all rows, and the columns."""
    cells: dict[str, tuple[list[int], list[float]]] = {}
    steps: list[int] = []
    for row in rows:
        step = _number(path, "?", "step", row.get("step", ""))
        if not step.is_integer() or (steps and step <= steps[-1]):
            raise UserError(f"{path} is damaged: step {step:g} follows step {steps[-1] if steps else 'none'}")
        steps.append(int(step))
        for name, cell in row.items():
            if name != "step":
                at, values = cells.setdefault(name, ([], []))
                at.append(steps[-1])
                values.append(_number(path, row["step"], name, cell))
    made = {name: Column(np.array(at, dtype=np.int64), np.array(values)) for name, (at, values) in cells.items()}
    return np.array(steps, dtype=np.int64), made


def _number(path: Path, step: str, name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(
            f"{path} is damaged: {name} at step {step} is {cell[:40]!r}, not a number; mend or remove that line"
        ) from None


def _settings(config: str | None) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(config or "")
    except yaml.YAMLError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _newest_checkpoint(folder: Path) -> tuple[int | None, bool]:
    """Step of the newest checkpoint and whether it ends the stage, by checkpoint.json alone.

    Whether its files are whole is found out by who loads it (gen1_train.training.checkpoint).
    """
    for info in sorted(folder.glob("checkpoints/step-*/checkpoint.json"), reverse=True):
        try:
            told = json.loads(info.read_text())
            return int(told["step"]), bool(told["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None, False


def newest_videos(logs: Sequence[RunLog], most: int = 3) -> list[tuple[str, list[Path]]]:
    """Validation videos of at most so many steps, newest first: (stage and step in words, files by name)."""
    found: list[tuple[str, list[Path]]] = []
    for log in reversed(logs):
        for folder in sorted((log.folder / "samples").glob("step-*"), reverse=True):
            videos = sorted(folder.glob("*.mp4"))
            step = re.fullmatch(r"step-(\d+)", folder.name)
            if videos and step and len(found) < most:
                found.append((f"stage {log.stage}, step {int(step[1]):,}", videos))
    return found
