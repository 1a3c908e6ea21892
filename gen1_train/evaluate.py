"""`gen1-eval`: edits of many (video, prompt) pairs, swept over the dials, measured and compared with baselines."""

import hashlib
import logging
import os
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen1_train.cli import start
from gen1_train.cli.app import run_app
from gen1_train.cli.compose import compose_config
from gen1_train.editing.config import ComputeConfig
from gen1_train.errors import UserError, check_choice
from gen1_train.evaluation.methods import SweepConfig, settings_of
from gen1_train.evaluation.pairs import Pair, read_pairs
from gen1_train.evaluation.results import WRITTEN, Unit, missing, open_output, recorded_precision, share, units_of
from gen1_train.system.console import ConsoleConfig, show

if TYPE_CHECKING:
    from gen1_train.evaluation.methods import Editing

STEPS = ("check", "run", "report")
# the settings that --help shows
FIRST = (
    "checkpoint",
    "prior",
    "data",
    "output",
    "methods",
    "omega_t",
    "t_s",
    "omega",
    "steps",
    "solver",
    "frames",
    "keep_videos",
    "precision",
    "workers",
)

logger = logging.getLogger(__name__)


@dataclass
class EvaluateConfig(SweepConfig):
    checkpoint: str | None = None  # a checkpoint or run folder (its newest); stage 3: videos of the content alone
    weights: str = "ema"  # which of its weights: ema (the first average, if there is one), raw, or an average's decay
    prior: str | None = None  # run folder of stage=prior; null: `prior` in the checkpoint, or next to its run folder
    data: str | None = None  # the pairs: a CSV with a header or JSONL: video, prompt, and image, start, frames, fps
    output: str | None = None  # the folder of the results; a second call with it resumes the evaluation
    frames: int | None = None  # how many frames of a video at most, unless its row has a number; null: all
    keep_videos: bool = False  # also write every edit, as a video and as a strip on the page
    step: str | None = None  # check (the inputs), run (this task's share), report; null: all that one process can do
    task: int | None = None  # which share of the results, from 0; null: SLURM_PROCID under srun, else all of them
    of: int | None = None  # how many shares
    workers: int = 1  # processes on this machine, a GPU each
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    precision: str = ComputeConfig.precision  # fp32, bf16, fp16, or auto: that of earlier results, else as gen1-edit
    compile: bool = ComputeConfig.compile  # torch.compile the UNet, once for each size of frames: pays for many steps
    tf32: bool = ComputeConfig.tf32  # precision=fp32 on GPUs: float32 products and convolutions with 10-bit mantissas
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def destinations(self) -> list[tuple[str, Path]]:
        """The folder of an evaluation and the setting that names it; none for a share, which others may add to."""
        return [("output", Path(self.output))] if self.output and self.task is None and self.step is None else []

    def check(self) -> None:
        """Raises UserError for a setting that is missing, or that makes no sense."""
        for name in ("checkpoint", "data", "output"):
            if getattr(self, name) is None:
                raise UserError(f"{name} is not given: add {name}=…")
        data = Path(str(self.data))
        if data.name in WRITTEN and data.parent.resolve() == Path(str(self.output)).resolve():
            raise UserError(f"data={data} would be replaced by the evaluation's own file: give another output=")
        if self.step is not None:
            check_choice("step", self.step, STEPS)
        for name in ("workers", "frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: give 1 or more")
        if self.step in (None, "run"):
            share_of(self)
        ComputeConfig(self.precision).check()
        super().check()

    @property
    def sweep(self) -> SweepConfig:
        return SweepConfig(**{setting.name: getattr(self, setting.name) for setting in fields(SweepConfig)})


def evaluate(*settings: str) -> Path:
    """Evaluates a checkpoint and returns the folder of the report; finished results are kept.

    `settings`: those of gen1-eval's command line, such as "checkpoint=runs/gen1/stage5". A script that calls this
    function needs `if __name__ == "__main__":`, since worker processes import it. Raises UserError.
    """
    config = compose_config("evaluate", EvaluateConfig, settings)
    run_evaluation(config)
    return Path(str(config.output))


def run_evaluation(config: EvaluateConfig) -> None:
    """Checks, runs and reports an evaluation, or one step of it. Raises UserError; finished results stay."""
    config.check()
    settings = settings_of(config)
    pairs = [replace(pair, frames=pair.frames or config.frames) for pair in read_pairs(Path(str(config.data)))]
    config = pin_checkpoints(config)
    output = Path(str(config.output))
    units = units_of(pairs, settings)
    config, precision = with_precision(config, recorded_precision(output))
    described = {**plan(config, pairs), "precision": precision}
    open_output(output, described)
    task, of = share_of(config) if config.step in (None, "run") else (0, 1)
    if config.step != "report":
        run_share(config, share(units, task, of), output)
    if config.step == "report" or (config.step is None and of == 1):
        from gen1_train.evaluation.report import write_report

        show(write_report(output, described, pairs, settings, config.sweep).rstrip())
        logger.info("%d pairs, %s", len(pairs), output / "index.html")


def share_of(config: EvaluateConfig) -> tuple[int, int]:
    """Returns which share of the results this process makes, and the number of shares. Raises UserError."""
    task, of = config.task, config.of
    if task is None and of is None:
        return int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    if task is None or of is None or not 0 <= task < of:
        raise UserError(f"task={task} of={of}: give both, task from 0 to of - 1, or neither")
    return task, of


def run_share(config: EvaluateConfig, units: list[Unit], output: Path) -> None:
    """Makes the missing results of the units; with step=check, only checks that it can. Raises UserError."""
    from gen1_train.evaluation.inputs import check_inputs
    from gen1_train.evaluation.run import Evaluator, run

    units = missing(output, units)
    if not units:
        return
    pairs = list(dict.fromkeys(unit.pair for unit in units))
    if config.prior is None and (without_image := [pair.line for pair in pairs if pair.image is None]):
        raise UserError(
            f"line {without_image[0]} of data= has a prompt without an image, and there is no prior from text to image "
            "embeddings: give prior=, or fill the column image (results are still compared with the prompt)"
        )
    check_inputs(pairs)
    if config.step == "check":
        load_editor(config, 0)
        return
    make = partial(Evaluator, sweep=config.sweep, output=output, keep_videos=config.keep_videos)
    run(units, partial(load_editor, config), make, config.workers)


def pin_checkpoints(config: EvaluateConfig) -> EvaluateConfig:
    """Replaces run folders by the folders of their newest checkpoints, which may be others later.

    Reads every byte in use of both checkpoints once. Raises UserError, also for a t_s that the checkpoint has not
    learned.
    """
    from gen1_train.editing.opening import default_prior, read_editable
    from gen1_train.training.checkpoints.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(Path(str(config.checkpoint)), config.weights)
    config.check_levels(read_editable(checkpoint, structure=False).stage.highest_level)
    config.check_structure(str(checkpoint.info.estimators.get("structure", {}).get("kind")))
    prior = config.prior or default_prior(checkpoint)
    if prior is not None:
        prior = str(find_checkpoint(Path(prior)).path)
    return replace(config, checkpoint=str(checkpoint.path), prior=prior)


def with_precision(config: EvaluateConfig, recorded: str | None) -> tuple[EvaluateConfig, str]:
    """Returns the config with the precision that edits are made in, and the one that the plan records.

    `recorded`: of the results that the folder holds. precision=auto continues with it; without results, the device
    decides. A report makes no results and takes those that there are. Raises UserError for a precision or a device
    that cannot be used here.
    """
    from gen1_train.editing.precision import DTYPES, formats_on
    from gen1_train.system.device import pick_device

    if recorded is not None and config.step == "report":
        return config, recorded
    if recorded in DTYPES and config.precision == "auto":
        return replace(config, precision=recorded, tf32=False), recorded  # fp32 is not tf32
    device = pick_device(config.device)
    if recorded == "tf32" and config.precision == "auto" and device.type == "cuda":
        config = replace(config, precision="fp32", tf32=True)
    formats = formats_on(device, config.precision)
    return replace(config, precision=formats.precision), formats.results(device, config.tf32)


def plan(config: EvaluateConfig, pairs: list[Pair]) -> dict[str, Any]:
    """Returns what the results depend on, with hashes, of a config from `pin_checkpoints`. Raises UserError."""
    from gen1_train.training.checkpoints.checkpoint import INFO, read_checkpoint

    def identity(path: str) -> str:
        return hashlib.sha256((Path(path) / INFO).read_bytes()).hexdigest()  # it has the hashes of all other files

    info = read_checkpoint(Path(str(config.checkpoint))).info
    return {
        "checkpoint": {
            "sha256": identity(str(config.checkpoint)),
            "weights": config.weights,
            "stage": info.stage,
            "step": info.step,
        },
        "prior": None if config.prior is None else identity(config.prior),
        "settings": asdict(config.sweep) | {"keep_videos": config.keep_videos},
        "pairs": [pair.facts() for pair in pairs],
    }


def load_editor(config: EvaluateConfig, rank: int) -> "Editing":
    """Loads the editor of one of several worker processes."""
    from gen1_train.editing.editor import Gen1Editor
    from gen1_train.system.device import set_tf32, worker_device

    set_tf32(config.tf32 and config.precision == "fp32")  # so that metrics of half precision do not depend on it
    device = worker_device(config.device, int(os.environ.get("SLURM_LOCALID", 0)) * config.workers + rank)
    checkpoint = str(config.checkpoint)
    return Gen1Editor.from_pretrained(
        checkpoint,
        device,
        config.weights,
        config.prior,
        structure=False,
        precision=config.precision,
        compile=config.compile,
    )


def main() -> None:
    run_app("gen1-eval", "evaluate", EvaluateConfig, run_evaluation, first=FIRST)


if __name__ == "__main__":
    start.evaluate()
