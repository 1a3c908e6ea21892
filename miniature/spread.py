"""The same function applied to many cases, in one process per core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from gen1_train.system.console import progress
from gen1_train.system.processes import cores, worker_pool

Job = TypeVar("Job")
Result = TypeVar("Result")
JOBS_PER_PROCESS = 4  # with fewer, all jobs run in this process: a new process takes seconds to start


def spread(work: Callable[[Job], Result], jobs: Sequence[Job], title: str, unit: str) -> list[Result]:
    """Returns the results of `work`, a module-level function, for each job, in order. Shows a progress bar.

    Raises the first error of a job without starting the jobs that remain, and UserError if a process is killed.
    """
    return list(progress(_results(work, jobs), title=title, unit=unit, total=len(jobs)))


def _results(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    if (processes := min(cores(), len(jobs) // JOBS_PER_PROCESS)) < 2:
        yield from map(work, jobs)
        return
    remedy = "call it again, on fewer cores (taskset)"
    # one thread per process: the other cores run processes of their own
    with worker_pool(work, jobs, processes, remedy, torch.set_num_threads, 1) as futures:
        yield from (future.result() for future in futures)
