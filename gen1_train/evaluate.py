"""`gen1-eval`: edits of many (video, prompt) pairs, swept over the dials, measured and compared with baselines."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen1_train.cli import run_app
from gen1_train.errors import UserError
from gen1_train.evaluation.methods import SweepConfig, held, settings_of
from gen1_train.evaluation.pairs import Pair, read_pairs
from gen1_train.evaluation.results import Unit, begin, merge, missing, read_results, share, units_of
from gen1_train.files import write_atomically

if TYPE_CHECKING:
    from gen1_train.evaluation.methods import Editing
    from gen1_train.evaluation.run import Evaluator

STEPS = ("check", "run", "report")


@dataclass
class EvaluateConfig(SweepConfig):
    checkpoint: str | None = None  # a checkpoint folder, or a run folder (its newest), of stage 4 or 5
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    prior: str | None = None  # from text to image embeddings; null: the run folder `prior` beside the checkpoint's
    data: str | None = None  # the pairs: a CSV with a header or JSONL: video, prompt, and image, start, frames, fps
    output: str | None = None  # the folder of the results; called again, it goes on
    frames: int | None = None  # how many frames of a video at most, where its row says nothing; null: all
    keep_videos: bool = False  # write every edit too, as a video and as a strip on the page
    step: str | None = None  # check (the inputs), run (this task's share), report; null: all that one process can do
    task: int | None = None  # which share of the results, from 0; null: SLURM_PROCID under srun, else all of them
    of: int | None = None  # how many shares
    workers: int = 1  # processes on this machine, a GPU each
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


def evaluate(config: EvaluateConfig) -> None:
    """Checks, runs and reports an evaluation, or one step of it. Raises UserError; finished results stay."""
    for name in ("checkpoint", "data", "output"):
        if getattr(config, name) is None:
            raise UserError(f"{name} is not given: add {name}=…")
    if config.step is not None and config.step not in STEPS:
        raise UserError(f"step={config.step} is not one of {', '.join(STEPS)}")
    if config.workers < 1:
        raise UserError(f"workers={config.workers}: give 1 or more")
    if config.frames is not None and config.frames < 1:
        raise UserError(f"frames={config.frames}: give 1 or more")
    task, of = share_of(config) if config.step in (None, "run") else (0, 1)
    settings = settings_of(config)
    pairs = read_pairs(Path(str(config.data)))
    pairs = [replace(pair, frames=pair.frames or config.frames) for pair in pairs]
    output, units = Path(str(config.output)), units_of(pairs, settings)
    if config.step != "report":
        checkpoint = run_share(config, pairs, share(units, task, of), output)
    if config.step == "report" or (config.step is None and of == 1):
        report(config, pairs, units, output)


def run_share(config: EvaluateConfig, pairs: list[Pair], units: list[Unit], output: Path) -> None:
    """Makes the results of some units that are not there yet; with step=check it only makes sure that it could."""
    from gen1_train.evaluation.inputs import check_inputs
    from gen1_train.evaluation.run import Evaluator, run

    require_present(pairs)
    begin(output, plan(config, pairs))
    todo = missing(output, units)
    load = partial(load_editor, config)
    if not todo:
        return
    check_inputs(dict.fromkeys(unit.pair for unit in todo))
    if config.step == "check":
        check_editor(load(0), pairs)
        return
    sweep = SweepConfig(**{field.name: getattr(config, field.name) for field in fields(SweepConfig)})
    make = partial(Evaluator, sweep=sweep, output=output, keep_videos=config.keep_videos)
    run(todo, load, make, config.workers)


def report(config: EvaluateConfig, pairs: list[Pair], units: list[Unit], output: Path) -> None:
    """Merges the results into table, plots and page. Raises UserError if some are missing."""
