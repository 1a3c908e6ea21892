"""Remembers the traces behind the memory plan of a start, which take most of the time of a run of a few steps.

What a trace of the same arguments gives is always the same: tests/training/planning. All processes of a test session
share them. Fresh Python processes (tests/forkserver.py) trace for themselves, as users' do.
"""

import fcntl
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gen1_train.model.unet import UNetConfig
from gen1_train.training.planning import memory
from gen1_train.training.planning.tracing import Adapt, NumberFormat, PassMemory, Tracer
from tests.forkserver import TRACES


class RememberingTracer(Tracer):
    """A tracer that traces once in a test session for equal arguments; always, where TRACES is not set."""

    def __init__(self, config: UNetConfig, numbers: NumberFormat, adapt: Adapt | None = None) -> None:
        super().__init__(config, numbers, adapt)
        self.built_from = (config, numbers, adapt)

    def trace(self, *arguments: Any) -> PassMemory:
        if TRACES not in os.environ:
            return super().trace(*arguments)
        name = sha256(pickle.dumps((self.built_from, arguments))).hexdigest()
        with open(Path(os.environ[TRACES]) / name, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the ranks of a run need the same trace at the same time
            file.seek(0)
            content = file.read()
            if not content:
                content = pickle.dumps(super().trace(*arguments))
                file.write(content)
        return pickle.loads(content)


def remember_plans() -> None:
    """Traces are remembered by this process and its forks."""
    memory.Tracer = RememberingTracer  # type: ignore[misc]


@contextmanager
def remembered_plans() -> Iterator[None]:
    """Traces are remembered for the starts of runs in this block."""
    with patch.object(memory, "Tracer", RememberingTracer):
        yield
