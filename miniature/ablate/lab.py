"""Trains and evaluates the arms of the ablations, one after another. Each finished one is a row of a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import GEN1
from gen1_train.system.console import show
from miniature.ablate.arms import ARMS, BASE, LAST, Arm
from miniature.measure import MEASURED
from miniature.tiny import write_stable_diffusion
from miniature.workflow import Runner, Workflow, run_in_process
from miniature.world.world import SOURCES, World, write_world

WORLD = World(clips=400, images=3200, split="train", frames=32, height=128, width=224)
STEPS = {2: 800, 3: 200, 4: 400, 5: 400}  # about 12 minutes of two cores from stage 3 on; ours
LEVELS = (0, 7)  # t_s of the edits
SAMPLING = ("omega=3", "steps=12", "solver=dpm++", "keep_videos=true", "workers=2")
BY_NAME = {arm.name: arm for arm in ARMS}
# of an edit at t_s=0; and at t_s=7, where little of the structure is given
VALUES = ("hit", "colour_error", "mask_iou", "structure_correlation", "frame_consistency", "warp_error")
AT_7 = ("mask_iou",)


@dataclass(frozen=True)
class Row:
    """The edits of an arm with one seed, value by value, in the order of the cases."""

    arm: str
    seed: int
    steps: dict[str, int]
    settings: list[str]
    seconds: float  # of training, of the stages that are its own
    values: dict[str, list[float]]  # name -> one number for each case; names of AT_7 end with @7


class Lab:
    """The commands of the ablations in one folder. A killed one continues where it was."""

    def __init__(self, output: Path, results: Path, pairs: int = 64, run_command: Runner = run_in_process) -> None:
        """`results`: the file of the rows; what it has already is not run again."""
        self.output = output
        self.results = results
        self.pairs = pairs
        self.workflow = Workflow(output, "the same command", run_command)
        self.runs = output / "runs"

    def run(self, names: Sequence[str], seeds: Sequence[int], minutes: float | None = None) -> bool:
        """Runs these arms, or all, for each seed; returns whether all are done.

        No arm is begun after `minutes`. Raises UserError for an unknown arm, before anything is written.
        """
        if unknown := [name for name in names if name not in BY_NAME]:
            raise UserError(f"there is no arm {unknown[0]!r}; choose from {', '.join(BY_NAME)}")
        began, done = time.monotonic(), {(row.arm, row.seed) for row in read_rows(self.results)}
        wanted = [(BY_NAME[name], seed) for seed in seeds for name in dict.fromkeys((BASE, *(names or BY_NAME)))]
        left = [(arm, seed) for arm, seed in wanted if (arm.name, seed) not in done]
        for number, (arm, seed) in enumerate(left):
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                show(f"{len(left) - number} of {len(wanted)} runs are left: call the same command to continue")
                return False
            self.prepare()
            self.train(BY_NAME[arm.trained or arm.name], seed)
            self.evaluate(arm, seed)
            self.record(arm, seed)
        return True

    def prepare(self) -> None:
        """Makes the data and the cases, unless they are there."""
        self.output.mkdir(parents=True, exist_ok=True)
        videos = self.output / "videos"
        with self.workflow.timed("world"):
            write_world(videos, WORLD)
        source = [f"source={videos / SOURCES}", f"output={self.output / 'shards'}", "recipe=tiny", "workers=2"]
        self.workflow.call("data", "data_tools.main", *source)
        cases = [str(self.output / "cases"), "--pairs", str(self.pairs)]
        self.workflow.call("cases", "miniature.cases", *cases)

    def train(self, arm: Arm, seed: int) -> None:
        """Trains the stages that are not done: those before `arm.since` as the base, from a random Stable Diffusion."""
        start = self.output / "stable-diffusion"
        if not (start / "unet" / "config.json").exists():
            write_stable_diffusion(start, widths=(64, 96, 128), attention=(True,) * 3, layers=1, heads=2)
        self.stage(BASE, 1, seed, f"init.from={start}")
        before = BASE
        for stage, steps in STEPS.items():
            own = stage >= arm.since
            name, shards = (arm.name, self.shards(arm)) if own else (BASE, self.output / "shards")
            more = [f"init.checkpoint={self.runs / run_name(before, seed) / f'stage{stage - 1}'}"]
            more += [f"data.root={shards}", f"stage.steps={steps}"]
            self.stage(name, stage, seed, *more, *(arm.settings if own and stage in arm.stages else ()))
            before = name

    def shards(self, arm: Arm) -> Path:
        """Returns the set that an arm reads; one of its own is made from the base's."""
        if not arm.refresh:
            return self.output / "shards"
        own = self.output / f"shards-{arm.name}"
        settings = [f"source={self.output / 'shards'}", f"output={own}", "recipe=tiny", *arm.refresh]
        self.workflow.call(f"data of {arm.name}", "data_tools.main", "refresh", *settings)
        return own

    def stage(self, arm: str, stage: int, seed: int, *more: str) -> None:
        settings = [f"stage={stage}", "experiment=miniature", f"output={self.runs}", f"name={run_name(arm, seed)}"]
        title = f"{run_name(arm, seed)}, stage {stage}"
        self.workflow.call(title, "gen1_train.train", *settings, f"seed={seed}", *more)

    def evaluate(self, arm: Arm, seed: int) -> None:
        edits = self.output / "evaluation" / run_name(arm.name, seed)
        settings = [
            f"checkpoint={self.runs / run_name(arm.trained or arm.name, seed) / f'stage{LAST}'}",
            f"data={self.output / 'cases' / 'pairs.csv'}",
            f"output={edits}",
            f"methods=[{GEN1}]",
            "omega_t=[1]",
            f"t_s=[{','.join(map(str, LEVELS))}]",
            *SAMPLING,
            *arm.edits,
        ]
        self.workflow.call(f"{edits.name}, edits", "gen1_train.evaluate", *settings)
        self.workflow.call(f"{edits.name}, measures", "miniature.measure", str(edits), str(self.output / "cases"))

    def record(self, arm: Arm, seed: int) -> None:
        """Appends the row of an arm to the results."""
        name, timings = run_name(arm.name, seed), self.workflow.timings()
        lines = (self.output / "evaluation" / name / f"{MEASURED}.jsonl").read_text().splitlines()
        edits = sorted((json.loads(line) for line in lines), key=lambda edit: edit["line"])
        row = Row(
            arm=arm.name,
            seed=seed,
            steps={str(stage): steps for stage, steps in STEPS.items()},
            settings=[*arm.settings, *arm.refresh, *arm.edits],
            seconds=round(sum(timings.get(f"{name}, stage {stage}", 0.0) for stage in STEPS), 1),
            values=dict(values_of(edits)),
        )
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def run_name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def values_of(edits: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[float]]]:
    for level, names in ((LEVELS[0], VALUES), (LEVELS[1], AT_7)):
        for name in names:
            label = name if level == LEVELS[0] else f"{name}@{level}"
            yield label, [round(float(edit[name]), 4) for edit in edits if edit["t_s"] == level]


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of the results; none if there is no file. Raises UserError for a file that is not theirs."""
    if not path.exists():
        return []
    try:
        return [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a file of ablations ({error}): name another with --results") from error
