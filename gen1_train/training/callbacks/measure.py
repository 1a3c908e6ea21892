"""The progress bar of a run, and measurements around its steps: losses, shares of the time, throughput."""

import logging
import math
import resource
import sys
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.model.unet import UNetConfig
from gen1_train.system.console import progress
from gen1_train.system.device import peak_rate
from gen1_train.training.callbacks.clock import Clock, CudaStamp
from gen1_train.training.callbacks.tally import Tally
from gen1_train.training.module import Gen1Module
from gen1_train.training.planning.throughput import Encoding, gemm_rate, step_flops

logger = logging.getLogger(__name__)


class Progress(Callback):
    """Draws a bar over the optimizer steps and logs rows; the base of `Measure` and `PriorProgress`."""

    def __init__(self, *, title: str, steps: int, every: int, clock: Clock) -> None:
        """`title`: of the bar; `steps`: of the whole stage; `every`: optimizer steps between two rows."""
        self.title = title
        self.steps = steps
        self.every = every
        self.clock = clock
        self.learning_rate = 0.0  # of the step in progress
        self.bar: Any = None  # a tqdm from the start of training on; disabled where nothing is drawn

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = progress(title=self.title, unit="step", total=self.steps, initial=trainer.global_step)
        self.clock.restart(pl_module.device)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # read here, because the schedule advances before the batch ends
        self.learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])  # a tensor in AdamW of 8 bits

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()  # so that the traceback begins on a line of its own

    def is_row_due(self, step: int) -> bool:
        """Whether a row is logged after this optimizer step: every `every` steps, and at the last one."""
        return step % self.every == 0 or step == self.steps

    def show(self, loss: float, gradient: float | None, kind: str = "") -> None:
        """Writes the loss (of a `kind` of step) and the gradient norm behind the bar, at its next redraw."""
        label = f"{kind} loss" if kind else "loss"
        norm = "" if gradient is None else f", gradient {gradient:.3g}"
        self.bar.set_postfix_str(f"{label} {loss:.4f}{norm}", refresh=False)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def log_row(trainer: Trainer, row: Mapping[str, float]) -> None:
    """Logs a row of columns at the current optimizer step: to metrics.csv, and to W&B if it is on."""
    for sink in trainer.loggers:
        sink.log_metrics(dict(row), step=trainer.global_step)


class BatchFlops:
    """The FLOPs of a batch, computed once per shape: the UNet's, forward and backward, without recomputation, and
    those of the autoencoder for the frames or structures that it encodes.

    The optimizer is not counted.
    """

    def __init__(self, config: UNetConfig, factor: int, encoding: Encoding | None = None) -> None:
        """`factor`: pixels per latent; `encoding`: the autoencoder's FLOPs, for batches that it encodes."""
        self.config = config
        self.factor = factor
        self.encoding = encoding
        self._known: dict[tuple[str, int, int, int], int] = {}  # FLOPs of one sample, by kind, n, h, w

    def __call__(self, batch: Batch) -> int:
        b, n = batch.embeddings.shape[:2]
        if batch.moments is not None:
            h, w = batch.moments.shape[-2:]
        else:
            assert batch.frames is not None
            h, w = (side // self.factor for side in batch.frames.shape[2:4])
        shape = (batch.kind, n, h, w)
        if shape not in self._known:
            flops = step_flops(self.config, h, w, n, temporal=batch.kind == "video").total
            if self.encoding is not None:
                flops += n * self.encoding(h * self.factor, w * self.factor)
            self._known[shape] = flops
        return b * self._known[shape]


class PendingScalars:
    """Labeled numbers that are being copied from a device; the newest that has arrived is shown, without waiting."""

    def __init__(self) -> None:
        self._pending: deque[tuple[CudaStamp, str, Tensor]] = deque()
        self._last: tuple[str, float] = ("", float("nan"))

    def send(self, label: str, number: Tensor) -> None:
        if number.device.type != "cuda":
            self._last = (label, float(number))
            return
        # only a copy into pinned memory is asynchronous
        copy = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
        copy.copy_(number.detach(), non_blocking=True)
        self._pending.append((CudaStamp(), label, copy))

    def last(self) -> tuple[str, float]:
        while self._pending and self._pending[0][0].passed():
            _, label, copy = self._pending.popleft()
            self._last = (label, float(copy))
        return self._last


class Measure(Progress):
    """Logs a row every `every` optimizer steps, over the steps since the last row, and draws the progress bar."""

    def __init__(
        self,
        *,
        title: str,
        steps: int,
        every: int,
        flops: BatchFlops,
        image_share: Callable[[int], float],
        clock: Clock,
    ) -> None:
        """`image_share`: see Schedule; `clock`: shared by all callbacks that take a part of a step's time."""
        super().__init__(title=title, steps=steps, every=every, clock=clock)
        self.flops = flops
        self.image_share = image_share
        self.skipped: int | None = None  # optimizer steps skipped since the run began; None: nothing reports them
        self._loss = PendingScalars()
        self._norm: float | None = None  # gradient norm of the last step
        self._tally = Tally()
        self._gemm = 0.0  # FLOP/s of a rank's matrix products, the mean over the ranks
        self._peak: float | None = None  # the same, of the devices' data sheets; None if one of them is not known
        self._step = 0  # not the bar's count: a disabled bar does not count, and all ranks must log together

    def gradient(self, norm: float, skipped: int) -> None:
        """Takes the norm of the whole gradient, and the number of steps skipped since the run began.

        It is called once per optimizer step, before the batch ends, with the same values on all ranks.
        """
        self._norm = norm
        self.skipped = skipped
        self._tally.gradient(norm)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = torch.float32 if trainer.precision == "32-true" else torch.bfloat16
        rates = [gemm_rate(pl_module.device, dtype), device_peak(pl_module.device, dtype)]
        known = torch.tensor(rates, device=pl_module.device, dtype=torch.float64)
        self._gemm, peak = trainer.strategy.reduce(known, reduce_op="mean").tolist()  # type: ignore[union-attr]
        self._peak = None if math.isnan(peak) else peak
        products = f"{str(dtype).removeprefix('torch.')} matrix products"
        sheet = "" if self._peak is None else f", mfu_peak of the data sheet's {self._peak / 1e12:.4g}"
        logger.info(
            f"{products} run at {self._gemm / 1e12:.3g} TFLOP/s in each process: mfu is the share of that{sheet}"
        )
        self._step = trainer.global_step
        self._tally = _tally_for(pl_module)
        peak_memory(pl_module.device)  # drops the peak from before training
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.clock.switch("forward")

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.clock.switch("backward")

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.switch("optimizer")  # takes no time in a micro-batch that is not the last of its step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.clock.switch("other")
        self._tally.add(batch, outputs, self.flops(batch))
        if trainer.global_step > self._step:  # the last micro-batch of an optimizer step
            self._step = trainer.global_step
            self._advance(batch.kind, outputs["losses"].mean())
            if self.is_row_due(self._step):
                self._log(trainer, pl_module)

    def _advance(self, kind: str, loss: Tensor) -> None:
        if not self.bar.disable:
            self._loss.send(kind, loss)
            kind, value = self._loss.last()
            self.show(value, self._norm, kind)
        self.bar.update()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        memory = peak_memory(pl_module.device)
        row = self._tally.row(self.clock.take(), memory, self._gemm, partial(_gather, trainer), self._peak)
        row |= {"lr": self.learning_rate, "image_share": self.image_share(trainer.global_step)}
        if self.skipped is not None:
            row["skipped_steps"] = self.skipped
        log_row(trainer, row)
        self._tally = _tally_for(pl_module)


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the FLOP/s in a GPU's data sheet; NaN for other devices and dtypes, and for a GPU that is not known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return math.nan
    return peak_rate(torch.cuda.get_device_name(device)) or math.nan


def _gather(trainer: Trainer, own: Tensor) -> Tensor:
    """Stacks a vector (k) of every rank into (ranks, k), on all ranks. A collective."""
    ranks = own.new_zeros(trainer.world_size, len(own))
    ranks[trainer.global_rank] = own
    return trainer.strategy.reduce(ranks, reduce_op="sum")  # type: ignore[return-value]


def _tally_for(module: LightningModule) -> Tally:
    assert isinstance(module, Gen1Module)
    levels = module.stage.max_level if module.stage.structure else 0
    return Tally(module.device, module.diffusion.noise.steps, levels)


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory in bytes.

    On a GPU it is the most that was allocated since the last call, else this process's largest resident set.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
