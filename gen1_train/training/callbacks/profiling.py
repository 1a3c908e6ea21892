"""One optimizer step of rank 0 under torch's profiler: a Chrome trace, and the operators that take most of its time."""

import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

FOLDER = "profile"  # in the run folder
LOGGED = 10  # operators on the terminal
WRITTEN = 60  # operators in the file

logger = logging.getLogger(__name__)


class Profile(Callback):
    """Traces all micro-batches of one optimizer step, from their forward pass on; see `trainer.profile`.

    It writes RUN/profile/step-N.json.gz, which chrome://tracing and ui.perfetto.dev open, and step-N.txt with the table
    of the operators by their own time, on the GPU if there is one. The first step of each shape includes the choice of
    kernels, so a later one is typical.
    """

    def __init__(self, run: Path, step: int) -> None:
        """`run`: the run folder; `step`: 1 is the first one."""
        self.folder = run / FOLDER
        self.step = step
        self._profiler: profile | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step >= self.step:
            logger.warning(f"trainer.profile={self.step} traces nothing: step {trainer.global_step} is done already")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and trainer.global_step == self.step - 1 and self._profiler is None:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
            self._profiler = profile(activities=activities, record_shapes=True)
            self._profiler.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._profiler is not None and trainer.global_step >= self.step:
            profiler, self._profiler = self._profiler, None
            profiler.stop()  # waits for the GPU
            self._write(profiler, "cuda" if pl_module.device.type == "cuda" else "cpu")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._profiler is not None:  # a profiler that is still on would refuse the next one in this process
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: profile, device: str) -> None:
        """Writes trace and table. A disk that cannot take them does not end the run."""
        trace, table = (self.folder / f"step-{self.step}.{ending}" for ending in ("json.gz", "txt"))
        averages = profiler.key_averages()
        key = f"self_{device}_time_total"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            table.write_text(averages.table(sort_by=key, row_limit=WRITTEN, max_name_column_width=80))
            partial = trace.with_name(f".{trace.name}")
            profiler.export_chrome_trace(str(partial))
            os.replace(partial, trace)
        except OSError as error:
            logger.warning(f"the trace of step {self.step} cannot be written to {self.folder}: {error}")
            return
        logger.info(f"step {self.step} was traced: {trace}, {table}; its operators by their own {device} time:")
        for line in operator_lines(averages, device):
            logger.info(line)


def operator_lines(averages: EventList, device: str) -> list[str]:
    """Returns a line for each of the operators that take most of the time, `cpu` or `cuda`, without those they call."""
    name = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    times = {event.key: (getattr(event, name), event.count) for event in averages}
    total = sum(time for time, _ in times.values()) or 1.0
    longest = sorted(times.items(), key=lambda item: -item[1][0])[:LOGGED]
    return [f"  {t / 1e3:9.2f} ms {t / total:5.1%}  {key} ({count} calls)" for key, (t, count) in longest]


def profiling(run: Path, step: int | None) -> list[Profile]:
    """Returns the callback for `trainer.profile`, or none."""
    return [Profile(run, step)] if step else []
