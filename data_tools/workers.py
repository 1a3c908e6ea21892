"""Does tasks in this process or in several, with one progress bar for all of them."""

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.clips.read import FileReader, ReaderPool
from data_tools.estimate import load_estimators
from data_tools.plan import Plan
from data_tools.recipe import RecipeConfig
from data_tools.source.sources import open_source
from data_tools.task import TaskProgress, run_task
from gen1_train.system.console import progress
from gen1_train.system.device import pick_device, worker_device
from gen1_train.system.processes import cores, spawn_context, worker_pool

READERS = 8  # at most, for each worker
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of video [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know besides the number of a task."""

    source: str
    output: Path
    recipe: RecipeConfig
    device: str
    precision: str
    readers: int | None  # None: as many as there are cores for


def do_tasks(settings: Settings, plan: Plan, todo: list[int], workers: int) -> None:
    """Does the tasks `todo`. Raises UserError; finished tasks are kept."""
    if not todo:
        return
    workers = min(workers, len(todo))
    settings = replace(settings, readers=settings.readers or reader_count(settings.device, workers))
    with TaskBar(sum(plan.tasks[number].seconds for number in todo)) as bar:
        if workers == 1:
            for number in todo:
                do_task(settings, number, bar.add)
        else:
            do_tasks_in_processes(settings, todo, workers, bar.add)


def reader_count(device: str, workers: int) -> int:
    """Returns the readers of one worker: on a CPU the networks are the bottleneck, a GPU needs all cores to read."""
    if pick_device(device).type == "cpu":
        return 1
    return max(1, min(READERS, cores() // workers - 1))


def do_task(settings: Settings, number: int, on_progress: Callable[[TaskProgress], object]) -> None:
    """Does one task in this process; the networks stay loaded for the next one."""
    plan, source = Plan.load(settings.output), open_source(settings.source)
    estimators = load_estimators(settings.recipe, settings.device, settings.precision)
    readers = ReaderPool([FileReader(source, settings.recipe, plan.stills) for _ in range(settings.readers or 1)])
    with closing(readers):
        run_task(plan, number, settings.output, readers, estimators, on_progress)


def do_tasks_in_processes(
    settings: Settings, todo: list[int], workers: int, on_progress: Callable[[TaskProgress], object]
) -> None:
    """Does the tasks in worker processes. Raises UserError."""
    context = spawn_context()
    reports, ranks = context.Queue(), context.Queue()
    for rank in range(workers):
        ranks.put(rank)
    remedy = "run it again, finished tasks are kept; fewer workers need less memory"
    job = partial(do_task_in_worker, settings)
    with worker_pool(job, todo, workers, remedy, start_worker, reports, ranks) as futures:
        left = set(futures)
        while left:
            done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
            for report in drain(reports):
                on_progress(report)
            for future in done:
                future.result()


def drain(reports: Any) -> Iterator[TaskProgress]:
    """Yields everything that the workers have reported since the last call."""
    while True:
        try:
            yield reports.get_nowait()
        except queue.Empty:
            return


_worker: dict[str, Any] = {}  # in a worker process: its rank, and the queue for its reports


def start_worker(reports: Any, ranks: Any) -> None:
    """Gives a worker process its rank and the queue for its reports."""
    _worker.update(reports=reports, rank=ranks.get())


def do_task_in_worker(settings: Settings, number: int) -> None:
    """Does one task in a worker process."""
    device = worker_device(settings.device, _worker["rank"])
    do_task(replace(settings, device=device), number, _worker["reports"].put)


@dataclass
class TaskBar:
    """The progress bar of all tasks: seconds of video done, rate, time left, samples, and losses by category."""

    total: float  # seconds of video
    samples: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> "TaskBar":
        self._bar = progress(title="tasks", unit="s", total=self.total, shape=BAR)
        self._seconds = 0.0  # reported so far
        return self

    def __exit__(self, *error: object) -> None:
        self._update_postfix()
        self._bar.close()

    def add(self, report: TaskProgress) -> None:
        self.samples += report.samples
        self.lost.update(report.lost)
        self._update_postfix()
        seconds = min(self._seconds + report.seconds, self.total)  # a sum in another order may be larger
        self._bar.update(seconds - self._seconds)
        self._seconds = seconds

    def _update_postfix(self) -> None:
        lost = {category: str(count) for category, count in sorted(self.lost.items())}
        self._bar.set_postfix({"samples": str(self.samples), **lost}, refresh=False)
