"""How a run begins or goes on from checkpoints, and writes them while it trains."""

import errno
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.errors import UserError
from gen1_train.training import checkpoint, ema, state
from gen1_train.training.checkpoint import OPTIMIZER, CheckpointInfo
from gen1_train.training.clock import Clock
from gen1_train.training.counters import Counters, is_due
from gen1_train.training.network import NetworkModule

RETRY = 10.0  # seconds between two attempts to write


def begin_counters(
    source: checkpoint.Checkpoint | None, keeps: Collection[str], decays: list[float], resumed: bool
) -> Counters:
    """What a run has counted when it begins: nothing, or what stands in the checkpoint that it takes state from.

    An average that is not there begins with the weights.
    """
    before = source.counters if source is not None else Counters()
    counters = replace(before) if resumed else Counters(updates=before.updates if "optimizer" in keeps else 0)
    known = before.averaged if "ema" in keeps else {}
    counters.averaged = {ema.name_of(decay): known.get(ema.name_of(decay), 0) for decay in decays}
    return counters


class Begin(Callback):
    """Puts optimizer, averages and trainer where a checkpoint was saved, or where a new stage begins."""

    def __init__(
        self,
        counters: Counters,
        decays: list[float],
        source: checkpoint.Checkpoint | None,
        step: int,
        keeps: Collection[str],
    ) -> None:
        """`source`: what the weights come from, of which the state in `keeps` (optimizer, ema) is taken over, too.

        `counters` are filled in; `step`: the optimizer steps of this stage that are done.
        """
        self.counters, self.decays, self.source, self.step, self.keeps = counters, decays, source, step, keeps

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For a strategy that has been set up; of files, which are mapped, each process reads what it will hold."""
        assert isinstance(pl_module, NetworkModule)
        held, network = state.state_of(trainer.strategy), pl_module.network
        held.create_moments(self.counters.updates)
        if self.source is not None and "optimizer" in self.keeps:
            put(held, state.moments_of(network), self.source.moments())
        for name in map(ema.name_of, self.decays):
            held.create_average(name)
            if self.counters.averaged[name]:
                assert self.source is not None
                put(held, state.averages_of(network, name), self.source.weights(name.removeprefix("ema_")))
        state.go_on(trainer, self.step)


def put(held: state.PlainState, entries: state.Entries, saved: Mapping[str, Tensor]) -> None:
    """Takes over what a file holds of moments or an average.

    What it does not hold, of layers that are new, stays as it was created; new input channels are zero.
    """
    for name, (weight, kept) in entries.items():
        if name in saved:
            whole, shape = saved[name], held.shape(weight)
            if whole.shape != shape:  # model.pretrained.INPUT, widened
                whole = torch.zeros(shape)
                whole[:, : saved[name].shape[1]] = saved[name]
            held.put(weight, kept, whole)


class Averaging(Callback):
    """Takes the weights of each optimizer step into the averages."""

    def __init__(self, counters: Counters, decays: list[float], clock: Clock) -> None:
        self.counters, self.decays, self.clock = counters, decays, clock
        self._updates = counters.updates

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.counters.updates > self._updates:  # neither a micro-batch alone nor a step that was skipped
            self._updates = self.counters.updates
            with self.clock.phase("ema"):
                ema.update(state.state_of(trainer.strategy), self.counters, self.decays)


class SaveCheckpoints(Callback):
    """Writes a checkpoint every so many optimizer steps, at the last and where training stops; all ranks take part."""

    def __init__(
        self,
        run: Path,
        config: checkpoint.CheckpointConfig,
        steps: int,
        counters: Counters,
        resolved: str,
        describe: Callable[[int], CheckpointInfo],
        fail: Callable[[UserError], None],
        clock: Clock,
    ) -> None:
        """`describe(step)` makes the CheckpointInfo of a step; `resolved` is the run's config as YAML.

        `fail` is told, in a thread of the writer's, when a checkpoint cannot be written.
        """
        self.run, self.config, self.steps, self.counters = run, config, steps, counters
        self.resolved, self.describe, self.clock = resolved, describe, clock
        self._writer = Writer(config, fail)
        self._saved = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if is_due(step, self._saved, self.config.every, self.steps) or (trainer.should_stop and step != self._saved):
            with self.clock.phase("checkpoint"):
                self.save(trainer, pl_module)
            self._saved = step

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, NetworkModule)
        step, network = trainer.global_step, pl_module.network
        held, keep = state.state_of(trainer.strategy), trainer.is_global_zero
        self._writer.wait()  # for the one before: its copy of the weights is in memory until then
        began = time.perf_counter()
        entries = {pl_module.weights_file: state.weights_of(network), OPTIMIZER: state.moments_of(network)}
        entries |= {f"{name}.safetensors": state.averages_of(network, name) for name in self.counters.averaged}
        tensors = {file: held.gather(content, keep) for file, content in entries.items()}
        if keep:
            info = self.describe(step)
            info.counters = asdict(self.counters)
            self._writer.write(self.run, tensors, self.resolved, info, time.perf_counter() - began)
        if step == self.steps or trainer.should_stop or not self.config.asynchronous:
            self._writer.wait()
            trainer.strategy.barrier()  # nobody says that the stage is finished, or stopped, before it is saved

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._writer.wait()


class Writer:
    """Writes one checkpoint at a time in a thread, and tries again for a while when the disk is full or away."""

    def __init__(self, config: checkpoint.CheckpointConfig, fail: Callable[[UserError], None]) -> None:
        self.config, self.fail = config, fail
        self._thread: threading.Thread | None = None

    def write(self, *what: Any) -> None:
        """See `_write`; the tensors must not be changed by anybody until `wait` has come back."""
        self._thread = threading.Thread(target=self._write, args=what, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Comes back when nothing is being written. It takes at most as long as writing, and the patience."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self, run: Path, tensors: dict[str, dict[str, Tensor]], resolved: str, info: CheckpointInfo, gathered: float
    ) -> None:
        began = time.perf_counter()
        try:
            self._persist(run, tensors, resolved, info)
        except UserError as error:
            self.fail(error)
            return
        seconds, size = time.perf_counter() - began, sum(file["bytes"] for file in info.files.values()) / 1e9
        print(
            f"gen1-train: checkpoint of step {info.step}: {size:.3g} GB, gathered in {gathered:.1f} s, written in "
            f"{seconds:.1f} s{' while training went on' if self.config.asynchronous else ''}",
            flush=True,
        )

    def _persist(self, run: Path, tensors: dict[str, dict[str, Tensor]], resolved: str, info: CheckpointInfo) -> None:
        """Raises UserError when it could not be written for as long as the patience lasts."""
        until = time.monotonic() + self.config.patience_seconds
        while True:
            temporary = None
            try:
                temporary = checkpoint.begin(run, info.step)
                needed = sum(4 * tensor.numel() for content in tensors.values() for tensor in content.values())
                if shutil.disk_usage(temporary).free < needed:  # better than to fill it for everybody
                    raise OSError(errno.ENOSPC, f"no {needed / 1e9:.3g} GB are free there")
                checkpoint.commit(temporary, tensors, resolved, info, self.config)
                return
            except OSError as error:
                reason = f"the checkpoint of step {info.step} cannot be written to {run} ({error.strerror or error})"
                if temporary is not None:
                    checkpoint.discard(temporary)
            if time.monotonic() + RETRY > until:
                raise UserError(f"{reason}: free some space or mend the disk, then call the same command again")
            print(f"gen1-train: warning: {reason}: trying again in {RETRY:g} s", flush=True)
            time.sleep(RETRY)
