"""Restoring a run's state from a checkpoint when training starts, and writing checkpoints during training."""

import errno
import logging
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
from gen1_train.system.files import patiently
from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.checkpoints import checkpoint, ema, state
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, CheckpointInfo
from gen1_train.training.checkpoints.counters import Counters, is_due
from gen1_train.training.network import NetworkModule

Files = dict[str, dict[str, Tensor]]  # file name -> tensors by name
Complete = Callable[[Files], Files]

logger = logging.getLogger(__name__)


def initial_counters(
    source: checkpoint.Checkpoint | None, keeps: Collection[str], decays: list[float], resumed: bool
) -> Counters:
    """Returns the counters with which a run starts: zeros, or those of the checkpoint that its state comes from.

    An average that the checkpoint does not have starts as a copy of the weights.
    """
    before = source.counters if source is not None else Counters()
    counters = replace(before) if resumed else Counters(updates=before.updates if "optimizer" in keeps else 0)
    known = before.averaged if "ema" in keeps else {}
    counters.averaged = {ema.name_of(decay): known.get(ema.name_of(decay), 0) for decay in decays}
    return counters


class RestoreState(Callback):
    """Restores optimizer moments, averages and step counters from a checkpoint, or creates them for a new stage."""

    def __init__(
        self,
        *,
        counters: Counters,
        decays: list[float],
        source: checkpoint.Checkpoint | None,
        step: int,
        keeps: Collection[str],
    ) -> None:
        """`source`: the checkpoint of the weights, from which the state in `keeps` (optimizer, ema) is restored too.

        `counters`: from initial_counters; `step`: optimizer steps of this stage that are done.
        """
        self.counters = counters
        self.decays = decays
        self.source = source
        self.step = step
        self.keeps = keeps

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs after the strategy is set up. Files are memory-mapped, so each process reads only what it will hold."""
        assert isinstance(pl_module, NetworkModule)
        held, network = state.state_of(trainer.strategy), pl_module.network
        held.create_moments(self.counters.updates)
        if self.source is not None and "optimizer" in self.keeps:
            put(held, state.moments_of(network), self.source.moments())
        for name in map(ema.name_of, self.decays):
            held.create_average(name)
            if self.counters.averaged[name]:
                assert self.source is not None
                put(held, state.averages_of(network, name), self.source.trained(name.removeprefix("ema_")))
        state.resume_at(trainer, self.step)


def put(held: state.PlainState, entries: state.Entries, saved: Mapping[str, Tensor]) -> None:
    """Restores moments or an average from the tensors of a file.

    Entries of new layers, which the file does not have, keep their initial values; new input channels are zero.
    """
    for name, (weight, kept) in entries.items():
        if name in saved:
            whole, shape = saved[name], held.shape(weight)
            if whole.shape != shape:  # model.pretrained.INPUT, widened
                whole = torch.zeros(shape)
                whole[:, : saved[name].shape[1]] = saved[name]
            held.put(weight, kept, whole)


class Averaging(Callback):
    """Updates the averages with the weights after each optimizer step."""

    def __init__(self, counters: Counters, decays: list[float], clock: Clock) -> None:
        self.counters = counters
        self.decays = decays
        self.clock = clock
        self._updates = counters.updates

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.counters.updates > self._updates:  # not after a micro-batch alone, nor after a skipped step
            self._updates = self.counters.updates
            with self.clock.phase("ema"):
                ema.update(state.state_of(trainer.strategy), self.counters, self.decays)


class SaveCheckpoints(Callback):
    """Writes a checkpoint every N optimizer steps, at the last one, and where training stops. All ranks take part."""

    def __init__(
        self,
        *,
        run: Path,
        config: checkpoint.CheckpointConfig,
        steps: int,
        counters: Counters,
        resolved: str,
        describe: Callable[[int], CheckpointInfo],
        fail: Callable[[UserError], None],
        clock: Clock,
        complete: Complete = lambda tensors: tensors,
    ) -> None:
        """`describe(step)` returns the CheckpointInfo of a step; `resolved` is the run's config as YAML.

        `fail` is called when a checkpoint cannot be written. `complete` turns the files that were gathered into those
        that are written. Both are called in the writer's thread.
        """
        self.run = run
        self.config = config
        self.steps = steps
        self.counters = counters
        self.resolved = resolved
        self.describe = describe
        self.clock = clock
        self._writer = Writer(config, fail, complete)
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
        self._writer.wait()  # for the previous checkpoint: its copy of the weights is in memory until then
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
            trainer.strategy.barrier()  # no rank reports that the stage is finished, or stopped, before it is saved

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._writer.wait()


class Writer:
    """Writes one checkpoint at a time in a thread, and retries for a while when the disk is full or not reachable."""

    def __init__(
        self, config: checkpoint.CheckpointConfig, fail: Callable[[UserError], None], complete: Complete
    ) -> None:
        self.config = config
        self.fail = fail
        self.complete = complete
        self._thread: threading.Thread | None = None

    def write(self, run: Path, tensors: Files, resolved: str, info: CheckpointInfo, gathered: float) -> None:
        """Starts writing. The tensors must not be changed until `wait` has returned.

        `gathered`: seconds that gathering them took.
        """
        arguments = (run, tensors, resolved, info, gathered)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written: at the latest after `patience_seconds` and the time of one write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, run: Path, tensors: Files, resolved: str, info: CheckpointInfo, gathered: float) -> None:
        began = time.perf_counter()
        try:
            self._persist(run, self.complete(tensors), resolved, info)
        except UserError as error:
            self.fail(error)
            return
        seconds = time.perf_counter() - began
        size = sum(file["bytes"] for file in info.files.values()) / 1e9
        background = " in the background" if self.config.asynchronous else ""
        logger.info(
            f"checkpoint of step {info.step}: {size:.3g} GB, gathered in {gathered:.1f} s, written in "
            f"{seconds:.1f} s{background}"
        )

    def _persist(self, run: Path, tensors: Files, resolved: str, info: CheckpointInfo) -> None:
        """Raises UserError when no attempt succeeded within `patience_seconds`."""
        needed = sum(4 * tensor.numel() for content in tensors.values() for tensor in content.values())

        def attempt() -> None:
            temporary = checkpoint.begin(run, info.step)
            try:
                if shutil.disk_usage(temporary).free < needed:  # better than to fill the disk for all users
                    raise OSError(errno.ENOSPC, f"no {needed / 1e9:.3g} GB are free there")
                checkpoint.commit(temporary, tensors, resolved, info, self.config)
            except OSError:
                checkpoint.discard(temporary)
                raise

        what = f"the checkpoint of step {info.step} cannot be written to {run}"
        patiently(attempt, what, self.config.patience_seconds)
