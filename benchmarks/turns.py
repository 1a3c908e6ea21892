"""A training run as users start it, and inside it, in turns with it, a bare loop of the same work.

The bare loop is the forward pass, the backward pass and fused AdamW on a copy of the UNet, on the UNet's inputs and
targets of the run's first steps, which stay in memory: no loader, no draws, no clipping, no averages, no logging, no
Lightning, no DeepSpeed. Both are in one process and have the same threads. The run's loader workers are stopped while
it is the bare loop's turn, so that all their work falls into the run's own.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator
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
from gen1_train.frozen import autocast
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training import module as module_of_training
from gen1_train.training.module import Gen1Module


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
    """What the UNet is called with in a step, and what it should give."""

    given: tuple[Any, ...]
    named: dict[str, Any]
    target: Tensor


class BareLoop:
    def __init__(self, module: Gen1Module, mixed: bool) -> None:
        """Copies the weights: full ones, so not under ZeRO-3. `mixed`: float32 weights under autocast to bfloat16."""
        self.device, self.mixed = module.device, mixed
        self.unet = SpatioTemporalUNet(module.unet.config)
        self.unet.load_state_dict(module.unet.state_dict())
        self.unet.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=module.optim.lr, fused=True)
        self.work: list[Work] = []
        self.first_loss: float | None = None
        self._done = 0

    @torch.enable_grad()
    def run(self, steps: int) -> Moment:
        """What so many steps take; the work is gone through again and again."""
        begin = now(self.device)
        for _ in range(steps):
            work = self.work[self._done % len(self.work)]
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, "bf16" if self.mixed else "fp32"):
                prediction = self.unet(*work.given, **work.named)
            loss = per_sample_loss(prediction.float(), work.target).mean()
            loss.backward()
            self.optimizer.step()
            if self.first_loss is None:
                self.first_loss = loss.item()
            self._done += 1
        return begin.until(now(self.device))


class Turns(Callback):
    """To be the last callback: after each `block` optimizer steps it is the bare loop's turn, for as many.

    The first turns of both are to warm up. Each later one of the run is held against the mean of the bare loop's before
    and after it, so that a machine that becomes slower, or faster, favours neither.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.ours: list[Moment] = []
        self.bare: list[Moment] = []  # one more
        self._loop: BareLoop | None = None
        self._recording = ExitStack()
        self._first_loss = float("nan")
        self._begin = Moment(0, 0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        self._loop = BareLoop(pl_module, mixed=trainer.precision == "bf16-mixed")
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        work = self._loop.work

        def called(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls.append((given, named))

        def compared(prediction: Tensor, target: Tensor) -> Tensor:
            work.append(Work(*calls.pop(), target.detach()))
            return per_sample_loss(prediction, target)

        hook = pl_module.unet.register_forward_pre_hook(called, with_kwargs=True)
        self._recording.callback(hook.remove)
        self._recording.enter_context(patch.object(module_of_training, "per_sample_loss", compared))

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
        """The bare loop does the work that the run does: from the same weights it comes to the same loss."""
        assert self._loop is not None and self._loop.first_loss is not None
        losses = [torch.tensor(loss) for loss in (self._loop.first_loss, self._first_loss)]
        torch.testing.assert_close(*losses, rtol=1e-4 if exact else 2e-2, atol=0)

    def row(self) -> dict[str, Any]:
        """Seconds and milliseconds are of a step."""
        pairs = list(zip(self.bare, self.bare[1:]))
        found: dict[str, Any] = {}
        for what in ("wall", "cpu"):
            ours = [getattr(turn, what) / self.block for turn in self.ours]
            bare = [sum(getattr(turn, what) for turn in pair) / 2 / self.block for pair in pairs]
            ratios = [own / its for own, its in zip(ours, bare, strict=True)]
            found |= {
                f"bare_{what}_s": round(statistics.median(bare), 4),
                f"ours_{what}_s": round(statistics.median(ours), 4),
                f"ratio_{what}": round(statistics.median(ratios), 4),
                f"ratios_{what}": [round(ratio, 3) for ratio in ratios],
                f"overhead_{what}_ms": round(1e3 * statistics.median(a - b for a, b in zip(ours, bare)), 1),
            }
        return found
