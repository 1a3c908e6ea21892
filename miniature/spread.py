"""The same work on many cases, by a process for each core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm

from gen1_train.children import cores, worker_pool

Job = TypeVar("Job")
Made = TypeVar("Made")
FEW = 4  # jobs for each core: fewer are done here, for a process takes seconds to start


def spread(work: Callable[[Job], Made], jobs: Sequence[Job], title: str, unit: str) -> list[Made]:
    """What `work`, a function of a module, makes of each job, in their order; progress goes to stderr.

    An error of one job is raised, and the jobs that have not begun are left. UserError also when a process is killed.
    """
    return list(tqdm(_made(work, jobs), title, len(jobs), unit=unit, mininterval=0.5))


def _made(work: Callable[[Job], Made], jobs: Sequence[Job]) -> Iterator[Made]:
    if (processes := min(cores(), len(jobs) // FEW)) < 2:
        yield from map(work, jobs)
        return
    mend = "call it again, on fewer cores (taskset)"
    # one thread each: the other cores have processes of their own
    with worker_pool(work, jobs, processes, mend, torch.set_num_threads, 1) as made:
        yield from (future.result() for future in made)
