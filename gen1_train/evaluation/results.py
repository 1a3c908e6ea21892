"""The files of an evaluation.

OUTPUT/evaluation.json                the plan: checkpoint, settings and rows; an evaluation by another plan is refused
OUTPUT/results/00002/NAME.json        one file for each result, written whole; 00002 is the row's line in the list
OUTPUT/videos/, OUTPUT/strips/        keep_videos: edits as MP4 and as a strip of frames, with the same names
OUTPUT/results.jsonl                  step=report: all results, one per line, in the order of rows and settings
OUTPUT/summary.json, table.md         step=report: their means with confidence intervals
OUTPUT/plots/*.svg, *.png, index.html
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import Setting
from gen1_train.evaluation.metrics import METRICS
from gen1_train.evaluation.pairs import Pair
from gen1_train.system.files import own_folder, write_atomically
from gen1_train.system.records import read_json

PLAN = "evaluation.json"
RESULTS = "results.jsonl"
WRITTEN = (PLAN, RESULTS, "summary.json", "table.md", "index.html")  # files of an evaluation
CHANGED = {  # part of the plan -> its name in the message that it has changed
    "checkpoint": "checkpoint=",
    "prior": "prior=",
    "settings": "a setting",
    "pairs": "data= or a file that it names",
}
BEFORE = {"precision": "fp32"}  # parts that plans of earlier versions lack, and their meaning
SETTINGS_BEFORE = {"structure": None}  # the same of the settings


@dataclass(frozen=True)
class Unit:
    """One result: a pair, edited by a method at one setting of its dials."""

    pair: Pair
    setting: Setting

    def file(self, output: Path, folder: str, suffix: str) -> Path:
        return output / folder / f"{self.pair.line:05d}" / f"{self.setting.name}{suffix}"


def units_of(pairs: Sequence[Pair], settings: Sequence[Setting]) -> list[Unit]:
    """Returns all results of an evaluation, in order."""
    return [Unit(pair, setting) for pair in pairs for setting in settings]


def share(units: Sequence[Unit], task: int, of: int) -> list[Unit]:
    """Returns the part of one of several processes: consecutive units, so that few of them prepare the same input."""
    return list(units[len(units) * task // of : len(units) * (task + 1) // of])


def recorded_precision(output: Path) -> str | None:
    """Returns the precision of the results in an evaluation's folder; None if it holds none, or no plan to read."""
    if not holds_results(output):
        return None
    try:
        plan = read_json(output / PLAN)
    except (OSError, ValueError):
        return None
    precision = {**BEFORE, **plan}["precision"] if isinstance(plan, dict) else None
    return precision if isinstance(precision, str) else None


def holds_results(output: Path) -> bool:
    return next((output / "results").rglob("*.json"), None) is not None


def open_output(output: Path, plan: dict[str, Any]) -> None:
    """Opens the folder of an evaluation, new or to be resumed. Raises UserError if it has results of another one."""
    expected = json.loads(json.dumps(plan))  # as it is read back: tuples become lists
    path = output / PLAN
    try:
        recorded = {**BEFORE, **read_json(path)}
        if isinstance(recorded.get("settings"), dict):
            lacking = {name: value for name, value in SETTINGS_BEFORE.items() if name in expected["settings"]}
            recorded["settings"] = {**lacking, **recorded["settings"]}
        changed = next((name for name in expected if recorded.get(name) != expected[name]), None)
    except FileNotFoundError:
        recorded = {}
        changed = ""
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give another output=") from error
    if changed is None:
        return
    if holds_results(output):
        name = CHANGED.get(changed, PLAN)
        if changed == "settings":
            before = recorded.get(changed)
            before = before if isinstance(before, dict) else {}
            differing = [key for key in expected[changed] if before.get(key) != expected[changed][key]]
            name = ", ".join(f"{key}=" for key in differing)
        elif changed == "precision":
            name = f"precision= or the device ({str(recorded[changed])[:20]} then, {expected[changed]} now)"
        raise UserError(
            f"output={output} holds results of another evaluation: {name} has changed since; give another output=, "
            "or the earlier settings"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(expected, indent=1).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}") from error


def write_result(output: Path, unit: Unit, frames: int, metrics: dict[str, float | None], seconds: float) -> None:
    """Writes one result; its file is whole or does not exist."""
    pair = unit.pair
    path = unit.file(output, "results", ".json")
    row = {"line": pair.line, "video": pair.video, "prompt": pair.prompt, **asdict(unit.setting), "frames": frames}
    own_folder(output, "results", path.parent.name)
    write_atomically(path, (json.dumps(row | metrics | {"seconds": round(seconds, 3)}) + "\n").encode())


def missing(output: Path, units: Sequence[Unit]) -> list[Unit]:
    """Returns the units that have no result yet."""
    return [unit for unit in units if not unit.file(output, "results", ".json").is_file()]


def read_results(output: Path, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """Reads all results in order. Raises UserError if some are missing or damaged."""
    if units_left := missing(output, units):
        first = units_left[0]
        raise UserError(
            f"{len(units_left)} of {len(units)} results are missing, first {first.setting.name} of line "
            f"{first.pair.line}: call gen1-eval again (with the same task= and of=), then with step=report"
        )
    rows = []
    for unit in units:
        path = unit.file(output, "results", ".json")
        try:
            row = read_json(path)
            rows.append({**row, **{name: row[name] for name in (*METRICS, "seconds")}})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove it and call gen1-eval again") from error
    return rows
