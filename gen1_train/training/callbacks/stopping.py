"""Ends training on request, at a step that all ranks agree on, with a checkpoint of that step.

The stop signal (gen1_train.system.signals) reaches the ranks at different times, or only one of them. A rank that has
received it after step n writes into the store through which the ranks met that step n + 1 is the last one. No rank can
have finished that step without this one (the guard has read its gradient norm), so all ranks read it in time. This
needs no collective and no waiting.
"""

import logging
from datetime import timedelta
from typing import Any

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.system.signals import StopRequest

LAST = "gen1-train/last-step"  # in the store: the step after which all ranks stop

logger = logging.getLogger(__name__)


class Stopping(Callback):
    """Must come before SaveCheckpoints, which saves a checkpoint when `trainer.should_stop` is set."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.at: int | None = None  # the step after which training was stopped
        self._store: torch.distributed.Store | None = None  # None: this process is alone
        self._last: int | None = None
        self._step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if torch.distributed.is_available() and torch.distributed.is_initialized() and trainer.world_size > 1:
            self._store = _get_default_store().clone()
            self._store.set_timeout(timedelta(seconds=10))
        # Lightning runs a collective before every micro-batch to learn whether rank 0 has received SIGTERM, which
        # blocks the CPU until the GPU is done; its handlers save, or synchronize, inside the signal handler
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if self.request.listening:
            self.request.listen()
            self.request.graceful = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # not the last micro-batch of an optimizer step
            return
        self._step = step
        if self._is_last(step):
            self.at = step
            trainer.should_stop = True
            sender = f" by {self.request.signal_name}" if self.request.signal_name else ""
            logger.info(f"asked to stop{sender}: step {step} is the last")

    def _is_last(self, step: int) -> bool:
        if self._store is None:
            return self.request.signal_name is not None
        try:
            if self.request.signal_name is not None and self._last is None:
                self._store.compare_set(LAST, "", str(step + 1))
            if self._last is None and self._store.check([LAST]):
                self._last = int(self._store.get(LAST))
        except torch.distributed.DistError:
            return False  # rank 0, which has the store, is gone: RankFailure reports it
        return self._last is not None and step >= self._last
