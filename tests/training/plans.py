"""Remembers what a start plans and measures, which takes most of the time of a run of a few steps.

These are the traces behind its memory plan, and the rate of this machine's matrix products. What a trace of the same
arguments gives is always the same: tests/training/planning. All processes of a test session share both. Fresh Python
processes (tests/forkserver.py) trace and measure for themselves, as users' do.
"""

import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch

from gen1_train.model.unet import UNetConfig
from gen1_train.training.callbacks import measure
from gen1_train.training.planning import memory
from gen1_train.training.planning.throughput import gemm_rate
from gen1_train.training.planning.tracing import Adapt, NumberFormat, PassMemory, Tracer
from tests.forkserver import TRACES

Result = TypeVar("Result")


def remembered(arguments: Any, compute: Callable[[], Result]) -> Result:
    """What `compute` returns: computed once in a test session for equal arguments; always, where TRACES is not set."""
    if TRACES not in os.environ:
        return compute()
    name = sha256(pickle.dumps(arguments)).hexdigest()
    with open(Path(os.environ[TRACES]) / name, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the ranks of a run need the same at the same time
        file.seek(0)
        content = file.read()
        if not content:
            content = pickle.dumps(compute())
            file.write(content)
    return pickle.loads(content)  # type: ignore[no-any-return]


class RememberingTracer(Tracer):
    """A tracer that builds its network when it meets something that nobody has traced."""

    def __init__(self, config: UNetConfig, numbers: NumberFormat, adapt: Adapt | None = None) -> None:
        self.built_from = (config, numbers, adapt)

    def __getattr__(self, name: str) -> Any:
        super().__init__(*self.built_from)
        return super().__getattribute__(name)

    @property
    def sizes(self) -> list[int]:
        return remembered((self.built_from, "sizes"), lambda: super(RememberingTracer, self).sizes)

    @property
    def trained(self) -> int:
        return remembered((self.built_from, "trained"), lambda: super(RememberingTracer, self).trained)

    def trace(self, *arguments: Any) -> PassMemory:
        return remembered((self.built_from, arguments), lambda: super(RememberingTracer, self).trace(*arguments))


def remembered_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    return remembered(("gemm_rate", str(device), dtype), lambda: gemm_rate(device, dtype))


def remember_plans() -> None:
    """Traces and rates are remembered by this process and its forks."""
    memory.Tracer = RememberingTracer  # type: ignore[misc]
    measure.gemm_rate = remembered_rate


@contextmanager
def remembered_plans() -> Iterator[None]:
    """Traces and rates are remembered for the starts of runs in this block."""
    with patch.object(memory, "Tracer", RememberingTracer), patch.object(measure, "gemm_rate", remembered_rate):
        yield
