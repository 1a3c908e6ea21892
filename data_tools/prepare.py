"""`gen1-data`: plan -> tasks -> freeze, each of which also runs alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from omegaconf import MISSING

from data_tools.estimate import Estimators, load_estimators
from data_tools.failures import FAILURES, Failure, read_failures
from data_tools.freeze import freeze, frozen, remove_staging
from data_tools.places import Source
from data_tools.plan import PLAN, Plan, load_fitting, make_plan
from data_tools.recipe import RecipeConfig, check
from data_tools.report import REPORT, write_report
from data_tools.sources import open_source
from data_tools.task import STAGING, forget, is_done, load_result
from data_tools.workers import Settings, do_tasks
from gen1_train.children import cores
from gen1_train.cli import run_app
from gen1_train.data.shards import MANIFEST, Manifest
from gen1_train.errors import UserError
from gen1_train.exits import INCOMPLETE
from gen1_train.frozen import pick_device, resolve_precision

STEPS = ("all", "plan", "missing", "task", "freeze", "report")
RETRY = ("transient",)
SHOWN = 5  # failures in the summary
PROBES = 16  # at most this many headers are read at a time


@dataclass
class DataToolsConfig:
    source: str = MISSING  # folder of videos and images, or a .csv, .jsonl or .parquet list, or a URL of either
    output: str = MISSING  # folder of the shard set
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    step: str = "all"  # all, plan, missing (prints which tasks are), task (all, or task= and of=), freeze, report
    task: int | None = None  # number of the task for step=task
    of: int | None = None  # with task=K: all tasks whose number is K modulo this, share K; for job arrays
    retry: str | None = None  # transient: does those tasks again in which something failed that may pass
    workers: int = 1  # processes that do tasks
    readers: int | None = None  # files that a worker decodes at a time; null: one, or on a GPU its share of cores
    device: str = "auto"  # of the networks: cpu, cuda, or auto: the GPUs if there are any, a worker each in turn
    precision: str = "auto"  # of the networks: fp32, fp16, bf16, or auto: fp16 on a GPU, else fp32


def main() -> None:
    run_app("gen1-data", "data", DataToolsConfig, run)


def run(config: DataToolsConfig) -> int:
    """Does the steps that the config names; returns the exit code. Raises UserError for what the user can mend."""
    check_settings(config)
    check(config.recipe)
    output = Path(config.output)
    source = open_source(config.source)
    done = {"all": MANIFEST, "plan": PLAN}.get(config.step)
    if done and not (output / done).exists():
        check_estimators(config)
    if config.step in ("all", "plan"):
        plan = make_plan(source, output, config.recipe, min(PROBES, cores()))
    else:  # none of these walks the source again, which a thousand tasks would do at once
        plan = load_fitting(output, config.recipe)
    if config.step == "missing":
        print(*missing(plan, output, config.of))
        return 0
    if config.retry:
        reopen(plan, output)
    if manifest := frozen(output, plan):
        return already_frozen(config, manifest, output)
    return steps(config, plan, source, output)


def check_estimators(config: DataToolsConfig) -> None:
    """Loads the networks before a source is walked: a wrong path is told in seconds, not after an hour of planning.

    Raises UserError.
    """
    if config.step == "all":
        resolve_precision(pick_device(config.device), config.precision)
    if config.step == "all" and config.workers == 1:
        load_estimators(config.recipe, config.device, config.precision)  # and keeps them for the tasks
    else:  # those who do the tasks may have a GPU that is not here
        Estimators(config.recipe, "cpu")


def check_settings(config: DataToolsConfig) -> None:
    """Raises UserError for settings that do not go together."""
    if config.step not in STEPS:
        raise UserError(f"step={config.step} is not one of {', '.join(STEPS)}")
    resolve_precision(torch.device("cuda"), config.precision)  # here only: whether there is such a one
    for name in ("workers", "readers", "of"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} is not above 0")
    if config.task is not None and config.step != "task":
        raise UserError("task=K goes with step=task")
    share = -1 if config.task is None else config.task
    if config.of is not None and config.step != "missing" and not 0 <= share < config.of:
        raise UserError(f"of={config.of} needs task=K with K in 0..{config.of - 1}")
    if config.retry not in (None, *RETRY):
        raise UserError(f"retry={config.retry} is not {RETRY[0]}")
    if config.retry and config.step not in ("all", "plan", "task"):
        raise UserError(f"retry={config.retry} goes with step=all, step=plan or step=task")


def steps(config: DataToolsConfig, plan: Plan, source: Source, output: Path) -> int:
    """What is still to be done of a plan."""
    if config.step == "plan":
        lost = plan.failures.files
        print(f"{output / PLAN}: {plan.files} files in {len(plan.tasks)} tasks, {lost} that no task will touch")
    if config.step in ("all", "task"):
        todo = [number for number in wanted(config, plan) if not is_done(output, number)]
        settings = Settings(config.source, output, config.recipe, config.device, config.precision, config.readers)
        do_tasks(settings, plan, todo, config.workers)
    if config.step in ("all", "freeze"):
        manifest = freeze(plan, config.recipe, output, config.workers)
        return tell(manifest, plan, output)
    if config.step == "report":
        raise UserError(f"output={output} is not frozen yet: run step=all, or step=task and step=freeze")
    return 0


def already_frozen(config: DataToolsConfig, manifest: Manifest, output: Path) -> int:
    """Nothing is to be done, but for the page. The exit code is that of the same step before the set was frozen."""
    losses = list(read_failures(output))
    if not any(failure.transient for failure in losses):
        remove_staging(output)  # of a freeze that was killed at its very end
    failed = sum(failure.failed for failure in losses)
    print(f"already frozen: {output / MANIFEST} ({summary(manifest)}); {failed} failed, all in {output / FAILURES}")
    # without a page the freeze was killed at its very end, or had no room for it
    if config.step == "report" or (config.step in ("all", "freeze") and not (output / REPORT).exists()):
        print(f"report: {write_report(output)}")
    return INCOMPLETE if failed and config.step in ("all", "freeze") else 0


def wanted(config: DataToolsConfig, plan: Plan) -> list[int]:
    """The numbers of the tasks that this call is about. Raises UserError."""
    count = len(plan.tasks)
    if config.task is None:
        return list(range(count))
    if config.of is not None:
        return list(range(config.task, count, config.of))
    if not 0 <= config.task < count:
        raise UserError(f"task={config.task} is not in 0..{count - 1}")
    return [config.task]


def missing(plan: Plan, output: Path, of: int | None) -> list[str]:
    """What a set lacks, in one word or none: its unfinished tasks, `freeze` once there are none, and then nothing.

    Tasks are told as sbatch takes them (`--array=0-2,7`): by the K of task=K, or with `of` that of task=K of=N.
    """
    if frozen(output, plan):
        return [] if (output / REPORT).exists() else ["freeze"]
    lacking = [number for number in range(len(plan.tasks)) if not is_done(output, number)]
    return [",".join(runs(sorted({number % of for number in lacking} if of else lacking))) or "freeze"]


def runs(numbers: list[int]) -> Iterator[str]:
    """Ascending numbers, each run of neighbours as FIRST-LAST."""
    for _, run in groupby(enumerate(numbers), lambda place: place[1] - place[0]):
        found = [number for _, number in run]
        yield str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def reopen(plan: Plan, output: Path) -> None:
    """Undoes the tasks in which something failed that may pass, and with them the freezing."""
    results = {number: load_result(output, number, plan.hash) for number in range(len(plan.tasks))}
    again = [number for number, result in results.items() if result is not None and result.transient]
    if not again:
        print("retry=transient: no finished task has a failure that may pass")
        return
    (output / MANIFEST).unlink(missing_ok=True)  # first: what is no longer whole must not look like a set
    for number in again:
        forget(output, number)
    print(f"retry=transient: {len(again)} of {len(plan.tasks)} tasks are done again")


def tell(manifest: Manifest, plan: Plan, output: Path) -> int:
    """The last lines: what came out, what did not and why, and where it stands. Returns the exit code."""
    print(f"frozen: {output / MANIFEST} ({summary(manifest)})")
    if plan.stills:
        print("the image samples are frames of the clips (recipe.stills)")
    losses = list(read_failures(output))
    failed = [failure for failure in losses if failure.failed]
    if losses:
        print(f"{len(failed)} failed, {len(losses) - len(failed)} dropped; all in {output / FAILURES}")
    show(failed)
    if transient := sum(failure.transient for failure in failed):
        print(
            f"{transient} of the failures may pass: mend the cause and call the same with retry=transient; until then "
            f"{output / STAGING} is kept (remove it to give them up)"
        )
    if plan.ignored:
        print("no media: " + ", ".join(f"{count} {suffix}" for suffix, count in plan.ignored.items()))
    print(f"report: {write_report(output)}")
    return INCOMPLETE if failed else 0


def show(failed: list[Failure]) -> None:
    """The first failures, a line each."""
    for failure in failed[:SHOWN]:
        kept = f" ({failure.clips} samples kept)" if failure.clips else ""
        # a name may hold line ends, and bytes that are no text, which print refuses
        name = failure.file if failure.file.isprintable() else ascii(failure.file)
        print(f"  {name}: {failure.reason}{kept}")
    if len(failed) > SHOWN:
        print(f"  and {len(failed) - SHOWN} more")


def summary(manifest: Manifest) -> str:
    return ", ".join(f"{name}: {pool.samples} samples" for name, pool in sorted(manifest.pools.items()))


if __name__ == "__main__":
    main()
