"""Alternates a training run, as users start it, with a bare loop of the same work inside the same process.

The bare loop runs forward pass, backward pass and fused AdamW on a copy of the UNet, with the UNet's inputs and targets
of the run's first steps, which stay in memory: no loader, draws, clipping, averages, logging, Lightning or DeepSpeed.
Both use the same threads. The run's loader workers are stopped during the bare loop's turns, so that all their work
counts toward the run.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.diffusion.loss import per_sample_loss
from gen1_train.model.group_norm import GroupNorm
from gen1_train.model.temporal import TemporalAttention
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.system.device import autocast
from gen1_train.training import module as training_module
from gen1_train.training.checkpoints.state import state_of, weights_of
from gen1_train.training.module import Gen1Module
from gen1_train.training.strategies.sharded import ShardedStrategy


@dataclass(frozen=True)
class Moment:
    wall: float  # seconds
    cpu: float  # seconds of this process and of its loader workers

    def until(self, later: "Moment") -> "Moment":
        return Moment(later.wall - self.wall, later.cpu - self.cpu)


def now(device: torch.device) -> Moment:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    # POSIX's CPU clocks of other processes, see clock_getcpuclockid(3)
    cpu = time.process_time() + sum(time.clock_gettime((~pid) << 3 | 2) for pid in workers)
    return Moment(time.perf_counter(), cpu)


@contextmanager
def stopped_workers() -> Iterator[None]:
    workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Work:
    """The arguments of the UNet in a step, and its target."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    target: Tensor


class BareLoop:
    def __init__(self, module: Gen1Module, weights: Mapping[str, Tensor], mixed: bool) -> None:
        """Copies `weights`, whole ones. `mixed`: float32 weights under bfloat16 autocast."""
        self.device = module.device
        self.mixed = mixed
        with self.device:
            self.unet = SpatioTemporalUNet(module.unet.config)
        self.unet.load_state_dict(weights)
        self.unet.train()
        for layer, copy in zip(module.unet.modules(), self.unet.modules(), strict=True):
            if isinstance(layer, GroupNorm | TemporalAttention):
                copy.triton = layer.triton
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=module.optim.lr, fused=True)
        self.work: list[Work] = []
        self.first_loss: float | None = None
        self._done = 0

    @torch.enable_grad()
    def run(self, steps: int) -> Moment:
        """Runs and times this many steps, cycling through the recorded work."""
        start = now(self.device)
        for _ in range(steps):
            work = self.work[self._done % len(self.work)]
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, "bf16" if self.mixed else "fp32"):
                prediction = self.unet(*work.arguments, **work.keywords)
            loss = per_sample_loss(prediction.float(), work.target).mean()
            loss.backward()
            self.optimizer.step()
            if self.first_loss is None:
                self.first_loss = loss.item()
            self._done += 1
        return start.until(now(self.device))


class Turns(Callback):
    """Runs the bare loop for `block` steps after every `block` optimizer steps. It must be the last callback.

    The first turns of both warm up. Each later turn of the run is compared with the mean of the bare loop's turns
    before and after it, so that a machine that becomes slower or faster favors neither.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.ours: list[Moment] = []
        self.bare: list[Moment] = []  # one more turn than `ours`
        self._loop: BareLoop | None = None
        self._recording = ExitStack()
        self._first_loss = float("nan")
        self._begin = Moment(0, 0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        weights: Mapping[str, Tensor] = pl_module.unet.state_dict()
        if isinstance(trainer.strategy, ShardedStrategy):
            first = trainer.is_global_zero
            weights = trainer.strategy.broadcast(state_of(trainer.strategy).gather(weights_of(pl_module.unet), first))
        self._loop = BareLoop(pl_module, weights, mixed=trainer.precision == "bf16-mixed")
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        work = self._loop.work

        def record_call(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            calls.append((arguments, keywords))

        def record_target(prediction: Tensor, target: Tensor) -> Tensor:
            work.append(Work(*calls.pop(), target.detach()))
            return per_sample_loss(prediction, target)

        hook = pl_module.unet.register_forward_pre_hook(record_call, with_kwargs=True)
        self._recording.callback(hook.remove)
        self._recording.enter_context(patch.object(training_module, "per_sample_loss", record_target))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert self._loop is not None
        if not batch_idx:
            self._first_loss = float(outputs["losses"].mean())
        if (batch_idx + 1) % self.block:
            return
        end = now(pl_module.device)
        if self.bare:
            self.ours.append(self._begin.until(end))
        self._recording.close()
        trainer.strategy.barrier()
        with stopped_workers():
            if not self.bare:
                self._loop.run(self.block)
                self._check(trainer.precision == "32-true")
            self.bare.append(self._loop.run(self.block))
        trainer.strategy.barrier()
        self._begin = now(pl_module.device)

    def _check(self, exact: bool) -> None:
        """Checks that the bare loop does the work of the run: from the same weights, both have the same loss."""
        assert self._loop is not None and self._loop.first_loss is not None
        losses = [torch.tensor(loss) for loss in (self._loop.first_loss, self._first_loss)]
        torch.testing.assert_close(*losses, rtol=1e-4 if exact else 2e-2, atol=0)

    def row(self) -> dict[str, Any]:
        """Returns the results; seconds and milliseconds are per step."""
        pairs = list(zip(self.bare, self.bare[1:]))
        result: dict[str, Any] = {}
        for clock in ("wall", "cpu"):
            ours = [getattr(turn, clock) / self.block for turn in self.ours]
            bare = [sum(getattr(turn, clock) for turn in pair) / 2 / self.block for pair in pairs]
            ratios = [own / reference for own, reference in zip(ours, bare, strict=True)]
            result |= {
                f"bare_{clock}_s": round(statistics.median(bare), 4),
                f"ours_{clock}_s": round(statistics.median(ours), 4),
                f"ratio_{clock}": round(statistics.median(ratios), 4),
                f"ratios_{clock}": [round(ratio, 3) for ratio in ratios],
                f"overhead_{clock}_ms": round(1e3 * statistics.median(a - b for a, b in zip(ours, bare)), 1),
            }
        return result
