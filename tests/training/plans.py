"""Remembers the traces behind the memory plan of a start, which takes most of the time of a run of a few steps.

What a trace of the same arguments gives is always the same: tests/training/planning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

from gen1_train.model.unet import UNetConfig
from gen1_train.training.planning import memory
from gen1_train.training.planning.tracing import Adapt, NumberFormat, PassMemory, Tracer


class RememberingTracer(Tracer):
    """A tracer that traces once in this process for equal arguments."""

    traces: ClassVar[dict[str, PassMemory]] = {}

    def __init__(self, config: UNetConfig, numbers: NumberFormat, adapt: Adapt | None = None) -> None:
        super().__init__(config, numbers, adapt)
        self.built_from = (config, numbers, adapt)

    def trace(self, *arguments: Any) -> PassMemory:
        key = repr((self.built_from, arguments))
        if key not in self.traces:
            self.traces[key] = super().trace(*arguments)
        return self.traces[key]


@contextmanager
def remembered_plans() -> Iterator[None]:
    """Traces are remembered for the starts of runs in this block."""
    with patch.object(memory, "Tracer", RememberingTracer):
        yield
