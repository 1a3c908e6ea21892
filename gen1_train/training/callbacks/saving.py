"""Restoring a run's state from a checkpoint when training starts, and writing checkpoints during training."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.errors import UserError
from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.checkpoints import checkpoint, ema, state, writing
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, CheckpointInfo
from gen1_train.training.checkpoints.counters import Counters, is_due
from gen1_train.training.checkpoints.parts import elements, shape_of
from gen1_train.training.checkpoints.reports import Reports
from gen1_train.training.checkpoints.snapshot import Snapshot
from gen1_train.training.checkpoints.writer import Complete, Shapes, Writer
from gen1_train.training.network import NetworkModule


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
        averages: ema.EmaConfig,
        source: checkpoint.Checkpoint | None,
        step: int,
        keeps: Collection[str],
    ) -> None:
        """`source`: the checkpoint of the weights, from which the state in `keeps` (optimizer, ema) is restored too.

        `counters`: from initial_counters; `step`: optimizer steps of this stage that are done.
        """
        self.counters = counters
        self.averages = averages
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
        for name in map(ema.name_of, self.averages.decays):
            held.create_average(name, on_cpu=self.averages.device == "cpu")
            if self.counters.averaged[name]:
                assert self.source is not None
                entries = state.averages_of(network, name)
                changing = {name: entry for name, entry in entries.items() if entry[0].requires_grad}
                put(held, changing, self.source.trained(name.removeprefix("ema_")))
        state.resume_at(trainer, self.step)


def put(held: state.PlainState, entries: state.Entries, saved: Mapping[str, Tensor]) -> None:
    """Restores moments or an average from the tensors of a file.

    Entries of new layers, which the file does not have, keep their initial values; new input channels are zero.
    """
    for name, (weight, kept) in entries.items():
        if name in saved:
            shape = held.shape(weight)
            if shape_of(saved, name) == shape:
                held.put_elements(weight, kept, partial(elements, saved, name))
            else:  # model.pretrained.INPUT, widened
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
        complete: Complete | None = None,
    ) -> None:
        """`describe(step)` returns the CheckpointInfo of a step; `resolved` is the run's config as YAML.

        `fail` is called when a checkpoint cannot be written. `complete` turns the files that were gathered into those
        that are written; without it, each of several ranks writes the part that it holds. Both are called in the
        writer's thread.
        """
        self.config = config
        self.steps = steps
        self.counters = counters
        self.describe = describe
        self.clock = clock
        self.complete = complete
        self._writer = Writer(run, config, resolved, fail)
        self._reports: Reports | None = None  # None: a checkpoint has no parts
        self._unique = ""  # a name of this start of the run, the same on all ranks
        self._snapshot = Snapshot()
        self._files: dict[str, state.Entries] = {}  # what is in each file
        self._shapes: Shapes = {}
        self._saved = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step
        held = state.state_of(trainer.strategy)
        self._files = self._entries(pl_module)
        self._shapes = {
            file: {name: list(held.shape(weight)) for name, (weight, _) in entries.items()}
            for file, entries in self._files.items()
        }
        if trainer.world_size > 1 and self.complete is None:
            self._reports = Reports(_get_default_store().clone(), trainer.global_rank, trainer.world_size)
            self._unique = trainer.strategy.broadcast(writing.unique_name())
            self._snapshot.reserve(held, self._files)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if is_due(step, self._saved, self.config.every, self.steps) or (trainer.should_stop and step != self._saved):
            with self.clock.phase("checkpoint"):
                self.save(trainer)
            self._saved = step

    def save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        held, first = state.state_of(trainer.strategy), trainer.is_global_zero
        self._writer.wait()  # for the previous checkpoint: its copy of the weights is in memory until then
        began = time.perf_counter()
        info = replace(self.describe(step), counters=asdict(self.counters)) if first else None
        if self._reports is not None:
            pieces = self._snapshot.take(held, self._files)
            copied = time.perf_counter() - began
            self._writer.write_parts(pieces, self._shapes, step, info, self._unique, self._reports, copied)
        else:
            tensors = {file: held.gather(entries, first) for file, entries in self._files.items()}
            if info is not None:
                self._writer.write(tensors, info, self.complete, time.perf_counter() - began)
        if step == self.steps or trainer.should_stop or not self.config.asynchronous:
            self._writer.wait()
            trainer.strategy.barrier()  # no rank reports that the stage is finished, or stopped, before it is saved

    def _entries(self, pl_module: LightningModule) -> dict[str, state.Entries]:
        assert isinstance(pl_module, NetworkModule)
        network = pl_module.network
        files = {pl_module.weights_file: state.weights_of(network), OPTIMIZER: state.moments_of(network)}
        averages = {f"{name}.safetensors": state.averages_of(network, name) for name in self.counters.averaged}
        return files | averages

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._writer.wait()
