"""What an evaluation leaves in its folder.

OUTPUT/evaluation.json                what is evaluated: checkpoint, settings, rows; another one is refused
OUTPUT/results/00002/NAME.json        one result each, whole or not there, as it is made; 00002: the row's line
OUTPUT/videos/, OUTPUT/strips/        keep_videos: edits as MP4 and as a strip of frames, named in the same way
OUTPUT/results.jsonl                  step=report: all results, a line each, in the order of rows and settings
OUTPUT/summary.json, table.md         their means with confidence intervals
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
from gen1_train.files import write_atomically

PLAN, RESULTS = "evaluation.json", "results.jsonl"
MEANT = {
    "checkpoint": "checkpoint=",
    "prior": "prior=",
    "settings": "a setting",
    "pairs": "data= or a file that it names",
}


@dataclass(frozen=True)
class Unit:
    """One result: a pair by a method at one setting of its dials."""

    pair: Pair
    setting: Setting

    def file(self, output: Path, folder: str, suffix: str) -> Path:
        return output / folder / f"{self.pair.line:05d}" / f"{self.setting.name}{suffix}"


def units_of(pairs: Sequence[Pair], settings: Sequence[Setting]) -> list[Unit]:
    """All results there will be, in their order."""
    return [Unit(pair, setting) for pair in pairs for setting in settings]


def share(units: Sequence[Unit], task: int, of: int) -> list[Unit]:
    """The part of one of several processes: neighbours, so that an input is prepared by few of them."""
    return list(units[len(units) * task // of : len(units) * (task + 1) // of])


def begin(output: Path, plan: dict[str, Any]) -> None:
    """Opens the folder for this evaluation, or goes on with it. Raises UserError if another one has results there."""
    wanted = json.loads(json.dumps(plan))  # as it reads back: tuples are lists
    path = output / PLAN
    try:
        found = json.loads(path.read_text())
        changed = next((name for name in wanted if found.get(name) != wanted[name]), None)
    except FileNotFoundError:
        changed, found = "", {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give another output=") from error
    if changed is None:
        return
    if next((output / "results").rglob("*.json"), None) is not None:
        name = MEANT.get(changed, PLAN)
        if changed == "settings":
            differing = [key for key in wanted[changed] if found[changed].get(key) != wanted[changed][key]]
            name = ", ".join(f"{key}=" for key in differing)
        raise UserError(
            f"output={output} holds results of another evaluation: {name} has changed since; give another output=, "
            "or what was given then"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(wanted, indent=1).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}") from error


def write_result(output: Path, unit: Unit, frames: int, metrics: dict[str, float | None], seconds: float) -> None:
    """Writes one result, whole and once."""
    pair, path = unit.pair, unit.file(output, "results", ".json")
    row = {"line": pair.line, "video": pair.video, "prompt": pair.prompt, **asdict(unit.setting), "frames": frames}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(row | metrics | {"seconds": round(seconds, 3)}) + "\n").encode())


def missing(output: Path, units: Sequence[Unit]) -> list[Unit]:
    """Those without a result yet."""
    return [unit for unit in units if not unit.file(output, "results", ".json").is_file()]


def read_results(output: Path, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """All results in their order. Raises UserError if there are some missing or damaged."""
    if lacking := missing(output, units):
        raise UserError(
            f"{len(lacking)} of {len(units)} results are not there yet, {lacking[0].setting.name} of line "
            f"{lacking[0].pair.line} the first: call gen1-eval again (with task= and of= as before), then step=report"
        )
    rows = []
    for unit in units:
        path = unit.file(output, "results", ".json")
        try:
            row = json.loads(path.read_text())
            rows.append({**row, **{name: row[name] for name in (*METRICS, "seconds")}})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove it and call gen1-eval again") from error
    return rows
