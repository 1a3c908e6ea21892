"""The progress bar of the prior, and its rows in metrics.csv."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.callbacks.measure import Progress, log_row
from gen1_train.training.checkpoints.counters import Counters


class PriorProgress(Progress):
    """Logs the loss and the speed over the optimizer steps since the last row, and draws the bar."""

    def __init__(self, *, steps: int, every: int, batch: int, pairs: int, counters: Counters, clock: Clock) -> None:
        """`batch`: pairs per step, of `pairs` in the training set. `counters.updates` is counted here."""
        super().__init__(title="prior", steps=steps, every=every, clock=clock)
        self.batch = batch
        self.pairs = pairs
        self.counters = counters
        self._losses: list[Tensor] = []
        self._norms: list[float] = []

    def gradient(self, norm: float) -> None:
        """Takes the gradient norm of an optimizer step, before its batch ends."""
        self._norms.append(norm)
        self.counters.updates += 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        self.bar.update()
        if self.is_row_due(trainer.global_step):
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        seconds = sum(self.clock.take().values())
        loss = float(torch.stack(self._losses).mean())
        norm = sum(self._norms) / len(self._norms)
        row = {
            "x_loss": loss,
            "lr": self.learning_rate,
            "grad_norm": norm,
            "seconds": seconds,
            "samples_per_second": self.batch * len(self._losses) / seconds,
            "epochs": trainer.global_step * self.batch / self.pairs,
        }
        self.show(loss, norm)
        log_row(trainer, row)
        self._losses = []
        self._norms = []
