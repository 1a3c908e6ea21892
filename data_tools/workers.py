"""Tasks in this process or in several, with one line of progress over all of them."""

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.estimate import load_estimators
from data_tools.plan import Plan
from data_tools.progress import seconds_between
from data_tools.read import FileReader, ReaderPool
from data_tools.recipe import RecipeConfig
from data_tools.sources import open_source
from data_tools.task import Step, run_task
from gen1_train.children import SPAWN, cores, worker_pool
from gen1_train.frozen import device_of, pick_device

READERS = 8  # at most, for each worker
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of video [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know beside the number of a task."""

    source: str
    output: Path
    recipe: RecipeConfig
    device: str
    precision: str
    readers: int | None  # null: as many as there are cores for


def do_tasks(settings: Settings, plan: Plan, todo: list[int], workers: int) -> None:
    """Does these tasks. Raises UserError; what is finished is kept."""
    if not todo:
        return
    workers = min(workers, len(todo))
    settings = replace(settings, readers=settings.readers or reader_count(settings.device, workers))
    with Bar(sum(plan.tasks[number].seconds for number in todo)) as bar:
        if workers == 1:
            for number in todo:
                work(settings, number, bar.add)
        else:
            in_processes(settings, todo, workers, bar.add)


def reader_count(device: str, workers: int) -> int:
    """On a CPU the networks are the slowest by far; a GPU waits for all the cores that there are."""
    if pick_device(device).type == "cpu":
        return 1
    return max(1, min(READERS, cores() // workers - 1))


def work(settings: Settings, number: int, on_step: Callable[[Step], object]) -> None:
    """One task here; the networks stay loaded for the next one."""
    plan, source = Plan.load(settings.output), open_source(settings.source)
    estimators = load_estimators(settings.recipe, settings.device, settings.precision)
    readers = ReaderPool([FileReader(source, settings.recipe, plan.stills) for _ in range(settings.readers or 1)])
    with closing(readers):
        run_task(plan, number, settings.output, readers, estimators, on_step)


def in_processes(settings: Settings, todo: list[int], workers: int, on_step: Callable[[Step], object]) -> None:
    """The tasks in processes of their own. Raises UserError."""
    steps, ranks = SPAWN.Queue(), SPAWN.Queue()
    for rank in range(workers):
        ranks.put(rank)
    mend = "run it again, finished tasks are kept; fewer workers need less memory"
    with worker_pool(partial(work_there, settings), todo, workers, mend, start_worker, steps, ranks) as futures:
        left = set(futures)
        while left:
            done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
            for step in received(steps):
                on_step(step)
            for future in done:
                future.result()


def received(steps: Any) -> Iterator[Step]:
    """All that the workers have told since the last time."""
    while True:
        try:
            yield steps.get_nowait()
        except queue.Empty:
            return


_worker: dict[str, Any] = {}  # in a worker process: its rank, and where it tells its steps


def start_worker(steps: Any, ranks: Any) -> None:
    """Gives a worker process its rank."""
    _worker.update(steps=steps, rank=ranks.get())


def work_there(settings: Settings, number: int) -> None:
    """One task in a worker process."""
    device = device_of(settings.device, _worker["rank"])
    work(replace(settings, device=device), number, _worker["steps"].put)


@dataclass
class Bar:
    """The line of progress: seconds of video done, rate, time left, samples, and losses by category."""

    total: float
    samples: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> "Bar":
        self._bar = tqdm(total=self.total, desc="tasks", unit="s", bar_format=BAR, mininterval=seconds_between())
        return self

    def __exit__(self, *error: object) -> None:
        self._tell()
        self._bar.close()

    def add(self, step: Step) -> None:
        self.samples += step.samples
        self.lost.update(step.lost)
        self._tell()
        self._bar.update(min(step.seconds, self.total - self._bar.n))  # a sum in another order may be larger

    def _tell(self) -> None:
        lost = {kind: str(count) for kind, count in sorted(self.lost.items())}
        self._bar.set_postfix({"samples": str(self.samples), **lost}, refresh=False)
