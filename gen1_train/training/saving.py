"""Checkpoints while training: when one is written, and how a run goes on from one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.training import checkpoint, state
from gen1_train.training.module import Gen1Module


class SaveCheckpoints(Callback):
    """Writes a checkpoint every so many optimizer steps and at the last; all ranks take part."""

    def __init__(
        self,
        run: Path,
        config: checkpoint.CheckpointConfig,
        steps: int,
        resolved: str,
        describe: Callable[[int], checkpoint.CheckpointInfo],
    ) -> None:
        """`describe(step)` makes the CheckpointInfo of a step; `resolved` is the run's config as YAML."""
        self.run, self.config, self.steps = run, config, steps
        self.resolved, self.describe = resolved, describe
        self._saved = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.config.every == 0 or step == self.steps
        if due and step != self._saved:
            self.save(trainer, pl_module)
            self._saved = step

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        step, unet = trainer.global_step, pl_module.unet
        held, keep = state.state_of(trainer.strategy), trainer.is_global_zero
        weights = held.gather(state.weights_of(unet), keep)
        moments = held.gather(state.moments_of(unet), keep)
        if keep:
            temporary = checkpoint.begin(self.run, step)
            checkpoint.commit(temporary, weights, self.resolved, self.describe(step), self.config.keep, moments)
        trainer.strategy.barrier()


class Resume(Callback):
    """Puts the trainer where a checkpoint was saved."""

    def __init__(self, saved: checkpoint.Checkpoint) -> None:
        self.saved = saved

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        state.resume(trainer, pl_module.unet, self.saved.moments(), self.saved.info.step)
