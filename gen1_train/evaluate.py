"""`gen1-eval`: edits of many (video, prompt) pairs, swept over the dials, measured and compared with baselines."""

import hashlib
import os
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen1_train.cli import run_app
from gen1_train.errors import UserError
from gen1_train.evaluation.methods import Setting, SweepConfig, settings_of
from gen1_train.evaluation.pairs import Pair, read_pairs
from gen1_train.evaluation.results import Unit, begin, missing, share, units_of

if TYPE_CHECKING:
    from gen1_train.evaluation.methods import Editing

STEPS = ("check", "run", "report")


@dataclass
class EvaluateConfig(SweepConfig):
    checkpoint: str | None = None  # a checkpoint or run folder (its newest); stage 3: videos of the content alone
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    prior: str | None = None  # from text to image embeddings; null: `prior` beside the checkpoint's run, or in it
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
    check_dials(config, settings)
    pairs = [replace(pair, frames=pair.frames or config.frames) for pair in read_pairs(Path(str(config.data)))]
    config = found(config)
    output, units = Path(str(config.output)), units_of(pairs, settings)
    described = plan(config, pairs)
    begin(output, described)
    if config.step != "report":
        run_share(config, share(units, task, of), output)
    if config.step == "report" or (config.step is None and of == 1):
        from gen1_train.evaluation.report import write_report

        table = write_report(output, described, pairs, settings, sweep_of(config))
        print(f"{table}gen1-eval: {len(pairs)} pairs, {output / 'index.html'}", flush=True)


def share_of(config: EvaluateConfig) -> tuple[int, int]:
    """Which share of the results this process makes, of how many. Raises UserError."""
    task, of = config.task, config.of
    if task is None and of is None:
        return int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    if task is None or of is None or not 0 <= task < of:
        raise UserError(f"task={task} of={of}: give both, task from 0 to of - 1, or neither")
    return task, of


def run_share(config: EvaluateConfig, units: list[Unit], output: Path) -> None:
    """Makes the results of these units that are not there yet; with step=check makes sure that it could."""
    from gen1_train.evaluation.inputs import check_inputs
    from gen1_train.evaluation.run import Evaluator, run

    todo = missing(output, units)
    if not todo:
        return
    pairs = list(dict.fromkeys(unit.pair for unit in todo))
    if config.prior is None and (texts := [pair.line for pair in pairs if pair.image is None]):
        raise UserError(
            f"line {texts[0]} of data= has a prompt without an image, and there is no prior from text to image "
            "embeddings: give prior=, or fill the column image (the prompt is then only compared with)"
        )
    check_inputs(pairs)
    if config.step == "check":
        load_editor(config, 0)
        return
    make = partial(Evaluator, sweep=sweep_of(config), output=output, keep_videos=config.keep_videos)
    run(todo, partial(load_editor, config), make, config.workers)


def check_dials(config: EvaluateConfig, settings: list[Setting]) -> None:
    """Raises UserError for a dial that is out of the editor's range."""
    from gen1_train.diffusion.editing import SamplingConfig
    from gen1_train.diffusion.guidance import GuidanceConfig
    from gen1_train.editor import check

    usual = SamplingConfig()
    for setting in settings:
        dials: dict[str, Any] = {name: value for name, value in setting.dials.items() if name != "omega_t"}
        guidance = GuidanceConfig(config.omega, setting.dials.get("omega_t", usual.guidance.omega_t))
        check(replace(usual, steps=config.steps, solver=config.solver, guidance=guidance, **dials))


def found(config: EvaluateConfig) -> EvaluateConfig:
    """The config with the folders of checkpoint and prior as they are now: a run's newest may be another one later.

    Every byte of both is read, once. Raises UserError.
    """
    from gen1_train.editor import prior_beside
    from gen1_train.training.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(Path(str(config.checkpoint)))
    prior = config.prior or prior_beside(checkpoint)
    if prior is not None:
        prior = str(find_checkpoint(Path(prior)).path)
    return replace(config, checkpoint=str(checkpoint.path), prior=prior)


def plan(config: EvaluateConfig, pairs: list[Pair]) -> dict[str, Any]:
    """What the results depend on, by hashes; of a config as `found` gives it. Raises UserError."""
    from gen1_train.training.checkpoint import INFO, read_checkpoint

    def identity(path: str) -> str:
        return hashlib.sha256((Path(path) / INFO).read_bytes()).hexdigest()  # it holds those of all the other files

    info = read_checkpoint(Path(str(config.checkpoint))).info
    return {
        "checkpoint": {
            "sha256": identity(str(config.checkpoint)),
            "weights": config.weights,
            "stage": info.stage,
            "step": info.step,
        },
        "prior": None if config.prior is None else identity(config.prior),
        "settings": asdict(sweep_of(config)) | {"keep_videos": config.keep_videos},
        "pairs": [pair.facts() for pair in pairs],
    }


def sweep_of(config: EvaluateConfig) -> SweepConfig:
    return SweepConfig(**{field.name: getattr(config, field.name) for field in fields(SweepConfig)})


def load_editor(config: EvaluateConfig, rank: int) -> "Editing":
    """The editor of one of several worker processes."""
    from gen1_train.editor import Gen1Editor
    from gen1_train.frozen import device_of

    device = device_of(config.device, int(os.environ.get("SLURM_LOCALID", 0)) * config.workers + rank)
    checkpoint = str(config.checkpoint)
    return Gen1Editor.from_pretrained(checkpoint, device, config.weights, config.prior, structure=False)


def main() -> None:
    run_app("gen1-eval", "evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
