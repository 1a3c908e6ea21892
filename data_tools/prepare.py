"""`gen1-data`: plan -> tasks -> freeze, each of which also runs alone."""

import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from tqdm import tqdm

from data_tools.estimate import load_estimators
from data_tools.freeze import FAILURES, freeze, frozen
from data_tools.plan import PLAN, Plan, make_plan
from data_tools.recipe import RecipeConfig, check
from data_tools.scan import Failure
from data_tools.task import TaskResult, load_result, run_task
from gen1_train.cli import run_app
from gen1_train.data.shards import MANIFEST, Manifest
from gen1_train.errors import UserError

STEPS = ("all", "plan", "task", "freeze")
SHOWN = 5  # failures in the summary


@dataclass
class DataToolsConfig:
    source: str = MISSING  # folder of videos and images; a caption stands in NAME.txt beside NAME.mp4
    output: str = MISSING  # folder of the shard set
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    step: str = "all"  # all, plan, task (with task=K), freeze
    task: int | None = None  # number of the task for step=task
    workers: int = 1  # processes that do tasks; on a CPU each uses one core
    device: str = "auto"  # of the networks: cpu, cuda, or auto: a GPU if there is one


def main() -> None:
    run_app("gen1-data", "data", DataToolsConfig, run)


def run(config: DataToolsConfig) -> None:
    """Does the steps that the config names. Raises UserError for what the user can mend."""
    if config.step not in STEPS:
        raise UserError(f"step={config.step} is not one of {', '.join(STEPS)}")
    if config.workers < 1:
        raise UserError(f"workers={config.workers} is not above 0")
    if (config.step == "task") != (config.task is not None):
        raise UserError("task=K goes with step=task, and step=task needs it")
    check(config.recipe)
    source, output = Path(config.source), Path(config.output)
    plan = make_plan(source, output, config.recipe, config.workers)
    if manifest := frozen(output, plan):
        print(f"already frozen: {output / MANIFEST} ({summary(manifest)})")
        return
    if config.step == "plan":
        print(f"{output / PLAN}: {len(plan.files)} files in {len(plan.tasks)} tasks, {len(plan.failures)} failures")
    if config.step in ("all", "task"):
        do_tasks(config, plan, source, output)
    if config.step in ("all", "freeze"):
        report(freeze(plan, config.recipe, output), plan, output)


def do_tasks(config: DataToolsConfig, plan: Plan, source: Path, output: Path) -> None:
    """Does the tasks that are not done yet, with a line of progress."""
    if config.task is not None and not 0 <= config.task < len(plan.tasks):
        raise UserError(f"task={config.task} is not in 0..{len(plan.tasks) - 1}")
    wanted = range(len(plan.tasks)) if config.task is None else [config.task]
    todo = [number for number in wanted if load_result(output, number, plan.hash) is None]
    samples = dropped = 0
    readers: Counter[str] = Counter()
    with tqdm(total=sum(len(plan.tasks[number]) for number in todo), desc="tasks", unit="file") as progress:
        for number, result in run_tasks(config, todo, source, output, plan):
            samples += sum(result.samples.values())
            dropped += sum(failure.clips == 0 for failure in result.failures)
            readers.update(result.readers)
            progress.set_postfix(samples=samples, dropped=dropped)
            progress.update(len(plan.tasks[number]))
    if readers:
        print("clips by decoder: " + ", ".join(f"{name} {count}" for name, count in sorted(readers.items())))


def run_tasks(
    config: DataToolsConfig, todo: list[int], source: Path, output: Path, plan: Plan
) -> Iterator[tuple[int, TaskResult]]:
    """Yields (task, result) as they end: here, or in processes of their own when there are several workers."""
    workers = min(config.workers, len(todo))
    if workers <= 1:
        for number in todo:
            yield number, run_task(plan, number, source, output, load_estimators(config.recipe, config.device))
        return
    context = multiprocessing.get_context("spawn")  # a fork would share decoders, threads and the GPU
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        futures = {pool.submit(work, config, number, source, output): number for number in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?): run it again, finished tasks are kept; fewer workers "
                "need less memory"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Makes a worker process end when its parent is killed; the pool would let it wait for the next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(config: DataToolsConfig, number: int, source: Path, output: Path) -> TaskResult:
    """One task in a worker process, which keeps its networks for the next one."""
    return run_task(Plan.load(output), number, source, output, load_estimators(config.recipe, config.device))


def report(manifest: Manifest, plan: Plan, output: Path) -> None:
    """The last lines: what came out, what did not and why, and where it stands."""
    failures = [Failure(**json.loads(line)) for line in (output / FAILURES).read_text().splitlines()]
    print(f"frozen: {output / MANIFEST} ({summary(manifest)})")
    if plan.stills:
        print("the image samples are frames of the clips (recipe.stills)")
    if failures:
        print(f"{len(failures)} failures, all in {output / FAILURES}:")
        for failure in failures[:SHOWN]:
            kept = f" ({failure.clips} samples kept)" if failure.clips else ""
            print(f"  {failure.file}: {failure.reason}{kept}")
        if len(failures) > SHOWN:
            print(f"  and {len(failures) - SHOWN} more")
    if transient := sum(failure.transient for failure in failures):
        print(f"{transient} of the failures may pass: mend the cause, remove {output} and run it again")
    if plan.ignored:
        print("no media: " + ", ".join(f"{count} {suffix}" for suffix, count in plan.ignored.items()))


def summary(manifest: Manifest) -> str:
    return ", ".join(f"{name}: {pool.samples} samples" for name, pool in sorted(manifest.pools.items()))


if __name__ == "__main__":
    main()
