"""The main command, `gen1-data`: plan -> tasks -> freeze, each of which can also run alone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from omegaconf import MISSING

from data_tools.commands import COMMANDS
from data_tools.estimate import Estimators, load_estimators
from data_tools.failures import FAILURES, Failure, read_failures
from data_tools.freeze import freeze, load_frozen, remove_staging
from data_tools.plan import PLAN, Plan, load_fitting, make_plan
from data_tools.recipe import RecipeConfig
from data_tools.sets.report import REPORT, write_report
from data_tools.source.locations import Source
from data_tools.source.sources import open_source
from data_tools.stats import Stats
from data_tools.task import STAGING, discard_task, is_done, load_result
from data_tools.workers import Settings, do_tasks
from gen1_train.cli.app import run_app
from gen1_train.cli.compose import compose_config
from gen1_train.data.manifest import MANIFEST, Manifest
from gen1_train.errors import INCOMPLETE, UserError, check_choice, check_positive
from gen1_train.system.console import ConsoleConfig, show
from gen1_train.system.device import pick_device, resolve_precision
from gen1_train.system.files import refuse_link
from gen1_train.system.locks import LOCK, Lock
from gen1_train.system.processes import cores, leave_with

STEPS = ("all", "plan", "missing", "task", "freeze", "report")
ALONE = ("all", "plan", "freeze")  # those that only one process at a time may do in an output
RETRY = ("transient",)
# the settings that --help shows
FIRST = (
    "source",
    "output",
    "recipe.video_buckets",
    "recipe.image_buckets",
    "recipe.cut.frames",
    "recipe.cut.more_frames",
    "recipe.cut.stride",
    "recipe.structure",
    "recipe.caption",
    "recipe.latents",
    "step",
    "retry",
    "workers",
    "device",
)
SHOWN = 5  # failures listed in the summary
PROBES = 16  # at most this many headers are read at a time

logger = logging.getLogger(__name__)


@dataclass
class DataToolsConfig:
    source: str = MISSING  # folder of videos and images, or a .csv, .jsonl or .parquet list, or a URL of either
    output: str = MISSING  # folder of the shard set
    recipe: RecipeConfig = field(default_factory=RecipeConfig)  # how clips are cut and stored, and the networks
    step: str = "all"  # all, plan, missing (prints unfinished tasks), task (all, or task= and of=), freeze, report
    task: int | None = None  # number of the task for step=task
    of: int | None = None  # with task=K: all tasks whose number is K modulo this, share K; for job arrays
    retry: str | None = None  # transient: redo the tasks with a failure that another try may fix
    workers: int = 1  # processes that do tasks
    readers: int | None = None  # files that a worker decodes at a time; null: one, or on a GPU its share of the cores
    device: str = "auto"  # of the networks: cpu, cuda, or auto: the GPUs if there are any, assigned to workers in turn
    precision: str = "auto"  # of the networks: fp32, fp16, bf16, or auto: fp16 on a GPU, else fp32
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def destinations(self) -> list[tuple[str, Path]]:
        """The folder of the set and the setting that names it; none for a step, which others may add to."""
        return [("output", Path(self.output))] if self.step == "all" else []

    def check(self) -> None:
        """Raises UserError for settings that cannot be, or do not go together; the message names the remedy."""
        check_choice("step", self.step, STEPS)
        resolve_precision(torch.device("cuda"), self.precision)  # checks the name only
        check_positive(workers=self.workers, readers=self.readers, of=self.of)
        if self.task is not None and self.step != "task":
            raise UserError(f"task={self.task} needs step=task")
        share = -1 if self.task is None else self.task
        if self.of is not None and self.step != "missing" and not 0 <= share < self.of:
            raise UserError(f"of={self.of} needs task=K with K in 0..{self.of - 1}")
        if self.retry is not None:
            check_choice("retry", self.retry, RETRY)
        if self.retry and self.step not in ("all", "plan", "task"):
            raise UserError(f"retry={self.retry} needs step=all, step=plan or step=task")
        self.recipe.check()


def main() -> None:
    run_app("gen1-data", "data", DataToolsConfig, run, first=FIRST, commands=COMMANDS)


def prepare(*settings: str) -> Path:
    """Makes a set of shards and returns its folder; finished work is kept.

    `settings`: those of gen1-data's command line, such as "source=/data/videos". Files that could not be read are
    listed in the folder's failures.jsonl. A script that calls this function needs `if __name__ == "__main__":`, since
    worker processes import it. Raises UserError.
    """
    config = compose_config("data", DataToolsConfig, settings)
    run(config)
    return Path(config.output)


def run(config: DataToolsConfig) -> int:
    """Runs the steps that the config names; returns the exit code. Raises UserError."""
    config.check()
    output = Path(config.output)
    source = open_source(config.source)
    result = {"all": MANIFEST, "plan": PLAN}.get(config.step)
    if result and not (output / result).exists():
        check_estimators(config)
    with alone(config):
        return run_step(config, source, output)


@contextmanager
def alone(config: DataToolsConfig) -> Iterator[None]:
    """Holds the lock of the output for the length of a step that no other process may do there at the same time.

    Tasks may be done by any number of processes. A frozen set needs no lock, and may be in a folder that only others
    can write to; but the lock of a process that was killed after it had frozen the set is removed.
    Raises UserError if another process does such a step.
    """
    output = Path(config.output)
    frozen = (output / MANIFEST).exists() and not config.retry
    if config.step not in ALONE or (frozen and not (output / LOCK).exists()):
        yield
        return
    lock = Lock(output, "wait until it has ended, or choose another output=", leave_with)
    try:
        try:
            lock.take()
        except OSError as error:
            if not frozen:
                raise UserError(f"output={output} cannot be written: {error.strerror}: name another output") from error
        except UserError:
            if not frozen:
                raise
        yield
    finally:
        lock.release()


def run_step(config: DataToolsConfig, source: Source, output: Path) -> int:
    """Runs the steps that the config names; returns the exit code. Raises UserError."""
    if config.step in ("all", "plan"):
        plan = make_plan(source, output, config.recipe, min(PROBES, cores()))
    else:  # these steps do not list the source again, which a thousand tasks would do at once
        plan = load_fitting(output, config.recipe)
    if config.step == "missing":
        show(missing_work(plan, output, config.of))
        return 0
    if not (output / MANIFEST).exists() or config.retry:
        refuse_link(output / STAGING)  # tasks are written and removed there
    if config.retry:
        reopen_tasks(plan, output)
    if manifest := load_frozen(output, plan):
        return finish_frozen(config, manifest, output)
    return run_steps(config, plan, source, output)


def check_estimators(config: DataToolsConfig) -> None:
    """Loads the networks before the source is listed: a wrong path fails in seconds, not after an hour of planning.

    Raises UserError.
    """
    if config.step == "all":
        resolve_precision(pick_device(config.device), config.precision)
    if config.step == "all" and config.workers == 1:
        load_estimators(config.recipe, config.device, config.precision)  # and keeps them for the tasks
    else:  # the processes that do the tasks may have a GPU that is not here
        Estimators(config.recipe, "cpu")


def run_steps(config: DataToolsConfig, plan: Plan, source: Source, output: Path) -> int:
    """Runs the unfinished steps of a plan; returns the exit code."""
    if config.step == "plan":
        unused = plan.failures.files
        logger.info(f"{output / PLAN}: {plan.files} files in {len(plan.tasks)} tasks, {unused} files unused")
    if config.step in ("all", "task"):
        todo = [number for number in select_tasks(config, plan) if not is_done(output, number)]
        settings = Settings(config.source, output, config.recipe, config.device, config.precision, config.readers)
        do_tasks(settings, plan, todo, config.workers)
    if config.step in ("all", "freeze"):
        manifest = freeze(plan, config.recipe, output, config.workers)
        return finish(manifest, plan, output)
    if config.step == "report":
        raise UserError(f"output={output} is not frozen yet: run step=all, or step=task and step=freeze")
    return 0


def finish_frozen(config: DataToolsConfig, manifest: Manifest, output: Path) -> int:
    """Reports that the set is frozen and writes its page if needed.

    Returns the exit code of the same step before the set was frozen.
    """
    losses = load_failures(output)
    if not any(failure.transient for failure in losses):
        remove_staging(output)  # left by a freeze that was killed at its very end
    failed = sum(failure.failed for failure in losses)
    logger.info(
        f"already frozen: {output / MANIFEST} ({summary(manifest)}); {failed} failed, all in {output / FAILURES}"
    )
    # without a page, the freeze was killed at its very end, or the disk was full
    if config.step == "report" or (config.step in ("all", "freeze") and not (output / REPORT).exists()):
        logger.info(f"report: {write_report(output)}")
    return INCOMPLETE if failed and config.step in ("all", "freeze") else 0


def load_failures(output: Path) -> list[Failure]:
    """Returns the failures of a frozen set. Raises UserError if their list is missing or damaged."""
    try:
        return list(read_failures(output))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{output / FAILURES} cannot be read ({error}): restore it, or remove {output / MANIFEST} and freeze again"
        ) from error


def select_tasks(config: DataToolsConfig, plan: Plan) -> list[int]:
    """Returns the numbers of the tasks that this call is to do. Raises UserError."""
    count = len(plan.tasks)
    if config.task is None:
        return list(range(count))
    if config.of is not None:
        return list(range(config.task, count, config.of))
    if not 0 <= config.task < count:
        raise UserError(f"task={config.task} is not in 0..{count - 1}")
    return [config.task]


def missing_work(plan: Plan, output: Path, of: int | None) -> str:
    """Returns what a set lacks: its unfinished tasks, "freeze" once there are none, and "" when it is complete.

    Tasks are written as sbatch takes them (`--array=0-2,7`): the K of task=K, or with `of` the K of task=K of=N.
    """
    if load_frozen(output, plan):
        return "" if (output / REPORT).exists() else "freeze"
    unfinished = [number for number in range(len(plan.tasks)) if not is_done(output, number)]
    return ",".join(ranges(sorted({number % of for number in unfinished} if of else unfinished))) or "freeze"


def ranges(numbers: list[int]) -> Iterator[str]:
    """Yields ascending numbers, each run of consecutive ones as FIRST-LAST."""
    for _, group in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        run = [number for _, number in group]
        yield str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def reopen_tasks(plan: Plan, output: Path) -> None:
    """Discards the tasks with a transient failure, and with them the frozen set."""
    results = {number: load_result(output, number, plan.hash) for number in range(len(plan.tasks))}
    again = [number for number, result in results.items() if result is not None and result.transient]
    if not again:
        logger.info("retry=transient: no finished task has a failure that another try may fix")
        return
    (output / MANIFEST).unlink(missing_ok=True)  # first: what is no longer whole must not look like a set
    for number in again:
        discard_task(output, number)
    logger.info(f"retry=transient: {len(again)} of {len(plan.tasks)} tasks will be done again")


def finish(manifest: Manifest, plan: Plan, output: Path) -> int:
    """Writes the page and reports what was made, what was lost and why, and where it is. Returns the exit code."""
    logger.info(f"frozen: {output / MANIFEST} ({summary(manifest)})")
    if plan.stills:
        logger.info("the image samples are frames of the clips (recipe.stills)")
    losses = load_failures(output)
    failed = [failure for failure in losses if failure.failed]
    if losses:
        logger.info(f"{len(failed)} failed, {len(losses) - len(failed)} dropped; all in {output / FAILURES}")
    log_failures(failed)
    stats = Stats.load(output)
    if made := stats.made_by_network(manifest.estimators):
        logger.info(made)
    if empty := stats.empty_structure(manifest.estimators):
        logger.warning(empty)
    if transient := sum(failure.transient for failure in failed):
        logger.info(
            f"another try may fix {transient} of the failures: remove the cause and run the same command with "
            f"retry=transient; until then {output / STAGING} is kept (remove it to give them up)"
        )
    if plan.ignored:
        logger.info("not media: " + ", ".join(f"{count} {suffix}" for suffix, count in plan.ignored.items()))
    logger.info(f"report: {write_report(output)}")
    return INCOMPLETE if failed else 0


def log_failures(failed: list[Failure]) -> None:
    """Logs the first failures, one per line."""
    for failure in failed[:SHOWN]:
        kept = f" ({failure.clips} samples kept)" if failure.clips else ""
        # a name may contain line ends, and bytes that are not text and cannot be printed
        name = failure.file if failure.file.isprintable() else ascii(failure.file)
        logger.info(f"  {name}: {failure.reason}{kept}")
    if len(failed) > SHOWN:
        logger.info(f"  and {len(failed) - SHOWN} more")


def summary(manifest: Manifest) -> str:
    return ", ".join(f"{name}: {pool.samples} samples" for name, pool in sorted(manifest.pools.items()))


if __name__ == "__main__":
    main()
