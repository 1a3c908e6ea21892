"""Reads a run folder without loading weights: rows, settings, the newest checkpoint, validation videos."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.errors import UserError
from gen1_train.formats.plain_yaml import parse_yaml
from gen1_train.reporting.rows import read_metrics
from gen1_train.system.files import read_regular
from gen1_train.system.records import read_json

METRICS = "metrics.csv"
CONFIG = "config.yaml"
MAX_CONFIG = 1 << 20  # bytes of a config that the page shows; ours
LARGEST = 1 << 53  # from here on, steps are not exact as float64


@dataclass(frozen=True)
class Column:
    """The values of a column, in the rows that have any."""

    steps: np.ndarray  # int64 (n,), ascending
    values: np.ndarray  # float64 (n,); may be nan or infinite


@dataclass(frozen=True)
class RunLog:
    """The run folder of one stage."""

    folder: Path
    columns: dict[str, Column]
    steps: np.ndarray  # int64 (n,), of all rows
    changed: datetime  # when the last row was written
    config: str | None  # text of config.yaml
    settings: dict[str, Any]  # parsed config.yaml; empty if it is missing or cannot be read
    checkpoint: int | None  # step of the newest one
    finished: bool  # the newest checkpoint is the last of the stage

    @property
    def name(self) -> str:
        """The name of the run tree; without settings, that of the parent folder."""
        return str(self.settings.get("name") or self.folder.resolve().parent.name)

    @property
    def stage(self) -> str:
        return str(self._stage.get("name") or self.folder.resolve().name.removeprefix("stage"))

    @property
    def last_step(self) -> int:
        return int(self.steps[-1])

    @property
    def planned(self) -> int | None:
        """The number of steps of the whole stage."""
        steps = self._stage.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def _stage(self) -> dict[str, Any]:
        stage = self.settings.get("stage")
        return stage if isinstance(stage, dict) else {}

    def values(self, name: str) -> np.ndarray:
        """Returns the values of a column, float64 (n,); empty if it does not exist."""
        return self.columns[name].values if name in self.columns else np.empty(0)

    @property
    def seconds_per_step(self) -> float | None:
        """The median over the last rows, which is robust to rows with a checkpoint or a restart."""
        column = self.columns.get("seconds")
        if column is None:
            return None
        counts = np.diff(column.steps, prepend=0)
        seconds = column.values[-20:] / counts[-20:]
        return float(np.median(seconds)) if np.isfinite(seconds).all() else None


def read_run(path: Path) -> list[RunLog]:
    """Reads the stages of a run tree in order, or a single run folder. Raises UserError.

    Stages without a metrics.csv are skipped (stage 1 trains nothing).
    """
    if not path.is_dir():
        raise UserError(
            f"report={path}: there is no such folder; give a run folder, runs/NAME/stageN, or a run tree, runs/NAME"
        )
    if (path / METRICS).exists():
        return [read_stage(path)]
    stages = sorted((file.parent for file in path.glob(f"*/{METRICS}")), key=_order)
    if not stages:
        raise UserError(f"report={path}: no {METRICS} in it or in its stages yet: a run writes it with its first row")
    return [read_stage(folder) for folder in stages]


def _order(folder: Path) -> tuple[int, str]:
    """Sorts numbered stages by number, and named ones after them."""
    number = folder.name.removeprefix("stage")
    return (int(number), "") if number.isdecimal() else (1 << 30, number)


def read_stage(folder: Path) -> RunLog:
    """Reads one run folder. Raises UserError if its metrics.csv has no rows or is damaged."""
    path = folder / METRICS
    try:
        rows = read_metrics(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it") from error
    if not rows:
        raise UserError(f"{path} has no complete row yet: wait for the run's first one")
    config = _read_text(folder / CONFIG)
    checkpoint, finished = _newest_checkpoint(folder)
    steps, columns = _columns(path, rows)
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return RunLog(folder, columns, steps, changed, config, _settings(config), checkpoint, finished)


def _columns(path: Path, rows: Sequence[dict[str, str]]) -> tuple[np.ndarray, dict[str, Column]]:
    """Returns the steps of all rows, and the columns by name."""
    cells: dict[str, tuple[list[int], list[float]]] = {}
    steps: list[int] = []
    for row in rows:
        step = _number(path, "?", "step", row.get("step", ""))
        if not step.is_integer() or abs(step) >= LARGEST or (steps and step <= steps[-1]):
            raise UserError(f"{path} is damaged: step {step:g} follows step {steps[-1] if steps else 'none'}")
        steps.append(int(step))
        for name, cell in row.items():
            if name != "step":
                column_steps, values = cells.setdefault(name, ([], []))
                column_steps.append(steps[-1])
                values.append(_number(path, row["step"], name, cell))
    columns = {
        name: Column(np.array(column_steps, dtype=np.int64), np.array(values))
        for name, (column_steps, values) in cells.items()
    }
    return np.array(steps, dtype=np.int64), columns


def _number(path: Path, step: str, name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(
            f"{path} is damaged: {name} at step {step} is {cell[:40]!r}, not a number; fix or remove that line"
        ) from None


def _settings(config: str | None) -> dict[str, Any]:
    try:
        settings = parse_yaml(config or "")
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _read_text(path: Path) -> str | None:
    try:
        return read_regular(path, MAX_CONFIG).decode(errors="replace")
    except OSError:
        return None


def _newest_checkpoint(folder: Path) -> tuple[int | None, bool]:
    """Returns the step of the newest checkpoint, and whether it is the last of the stage, from checkpoint.json alone.

    Loading a checkpoint verifies its files (gen1_train.training.checkpoints.checkpoint).
    """
    for info in sorted(folder.glob("checkpoints/step-*/checkpoint.json"), reverse=True):
        try:
            content = read_json(info)
            return int(content["step"]), bool(content["finished"])
        except (OSError, ValueError, OverflowError, KeyError, TypeError):  # int(inf) overflows
            continue
    return None, False


def newest_videos(logs: Sequence[RunLog], most: int = 3) -> list[tuple[str, list[Path]]]:
    """Returns the validation videos of the `most` newest steps, newest first: (stage and step as a title, files)."""
    videos_by_step: list[tuple[str, list[Path]]] = []
    for log in reversed(logs):
        for folder in sorted((log.folder / "samples").glob("step-*"), reverse=True):
            videos = sorted(folder.glob("*.mp4"))
            step = re.fullmatch(r"step-(\d+)", folder.name)
            if videos and step and len(videos_by_step) < most:
                videos_by_step.append((f"stage {log.stage}, step {int(step[1]):,}", videos))
    return videos_by_step
