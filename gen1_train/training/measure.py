"""What is measured around the training steps: losses, where the time goes, throughput, the progress line."""

import resource
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.model.unet import UNetConfig
from gen1_train.training.clock import Clock, CudaStamp
from gen1_train.training.module import Gen1Module
from gen1_train.training.tally import Tally
from gen1_train.training.throughput import gemm_rate, step_flops


class BatchFlops:
    """The FLOPs of the UNet's step on a batch, forward and backward, nothing twice; a shape is reckoned once.

    Not counted: the optimizer, and the autoencoder where it encodes while training.
    """

    def __init__(self, config: UNetConfig, factor: int) -> None:
        """`factor`: pixels per latent, for batches that hold frames instead of latents."""
        self.config, self.factor = config, factor
        self._known: dict[tuple[str, int, int, int], int] = {}  # of one sample

    def __call__(self, batch: Batch) -> int:
        b, n = batch.embeddings.shape[:2]
        if batch.moments is not None:
            h, w = batch.moments.shape[-2:]
        else:
            assert batch.frames is not None
            h, w = (side // self.factor for side in batch.frames.shape[2:4])
        shape = (batch.kind, n, h, w)
        if shape not in self._known:
            self._known[shape] = step_flops(self.config, h, w, n, temporal=batch.kind == "video").total
        return b * self._known[shape]


class Arriving:
    """Numbers on their way from a device, each with a word to it: the newest that is there, and none is waited for."""

    def __init__(self) -> None:
        self._coming: deque[tuple[CudaStamp, str, Tensor]] = deque()
        self._last: tuple[str, float] = "", float("nan")

    def send(self, word: str, number: Tensor) -> None:
        if number.device.type != "cuda":
            self._last = word, float(number)
            return
        # only into pinned memory does a GPU copy while the process goes on
        there = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
        there.copy_(number.detach(), non_blocking=True)
        self._coming.append((CudaStamp(), word, there))

    def last(self) -> tuple[str, float]:
        while self._coming and self._coming[0][0].passed():
            _, word, there = self._coming.popleft()
            self._last = word, float(there)
        return self._last


class Measure(Callback):
    """Logs a row every `every` optimizer steps, over the steps since the last, and shows the progress line."""

    def __init__(
        self,
        steps: int,
        every: int,
        label: str,
        flops: BatchFlops,
        image_share: Callable[[int], float],
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        """`image_share` of the steps before a step, see Schedule; `clock`: shared by all that take a step's time."""
        self.steps, self.every, self.label, self.flops, self.say = steps, every, label, flops, say
        self.image_share, self.clock = image_share, clock
        self.skipped: int | None = None  # optimizer steps since the run began; None: nobody has said anything of it
        self._bar: tqdm[Any] | None = None
        self._shown = Arriving()
        self._norm: float | None = None  # of the last step's gradient
        self._tally = Tally()
        self._gemm = 0.0  # FLOP/s of a rank's matrix products, the mean over the ranks
        self._step = 0  # not the bar's count: a disabled bar does not count, and all ranks must log together
        self._lr = 0.0

    def gradient(self, norm: float, skipped: int) -> None:
        """To be told once an optimizer step, on all ranks alike, before the batch ends: the norm of the whole gradient,
        and how many steps have been skipped since the run began."""
        self._norm, self.skipped = norm, skipped
        self._tally.gradient(norm)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = torch.float32 if trainer.precision == "32-true" else torch.bfloat16
        rate = torch.tensor([gemm_rate(pl_module.device, dtype)], device=pl_module.device)
        self._gemm = float(trainer.strategy.reduce(rate, reduce_op="mean"))  # type: ignore[arg-type]
        products = f"{str(dtype).removeprefix('torch.')} matrix products"
        self.say(f"{products} run at {self._gemm / 1e12:.3g} TFLOP/s in each process: mfu is the share of that")
        self._bar = tqdm(
            total=self.steps,
            initial=trainer.global_step,
            desc=self.label,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 15.0,  # a log file need not hold every redraw
            disable=not trainer.is_global_zero,
            dynamic_ncols=True,
        )
        self._step = trainer.global_step
        self._tally = _tally_for(pl_module)
        peak_memory(pl_module.device)  # what came before is no part of the first row
        self.clock.restart(pl_module.device)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # read here: the schedule moves on before the batch ends
        self.clock.switch("forward")

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.clock.switch("backward")

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.switch("optimizer")  # in a micro-batch that is not the last of its step there is nothing to do

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.clock.switch("other")
        self._tally.add(batch, outputs, self.flops(batch))
        if trainer.global_step > self._step:  # the last micro-batch of an optimizer step
            self._step = trainer.global_step
            self._show(batch.kind, outputs["losses"].mean())
            if trainer.global_step % self.every == 0 or trainer.global_step == self.steps:
                self._log(trainer, pl_module)

    def _show(self, kind: str, loss: Tensor) -> None:
        assert self._bar is not None
        if not self._bar.disable:
            self._shown.send(kind, loss)
            shown, value = self._shown.last()
            gradient = "" if self._norm is None else f", gradient {self._norm:.3g}"
            self._bar.set_postfix_str(f"{shown} loss {value:.4f}{gradient}", refresh=False)
        self._bar.update()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, memory = trainer.global_step, peak_memory(pl_module.device)
        row = self._tally.row(self.clock.take(), memory, self._gemm, partial(_gather, trainer))
        row |= {"lr": self._lr, "image_share": self.image_share(step)}
        if self.skipped is not None:
            row["skipped_steps"] = self.skipped
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)
        self._tally = _tally_for(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()  # what is said of the exception is to stand on a line of its own


def _gather(trainer: Trainer, own: Tensor) -> Tensor:
    """(k) of each rank -> (ranks, k) on all."""
    ranks = own.new_zeros(trainer.world_size, len(own))
    ranks[trainer.global_rank] = own
    return trainer.strategy.reduce(ranks, reduce_op="sum")  # type: ignore[return-value]


def _tally_for(module: LightningModule) -> Tally:
    assert isinstance(module, Gen1Module)
    levels = module.max_level if module.structure else 0
    return Tally(module.device, module.diffusion.noise.steps, levels)


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that was allocated since it was last asked, else this process's largest resident set."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
