"""What is measured around the training steps: losses, throughput, the progress line."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.model.unet import UNetConfig
from gen1_train.training.datamodule import Gen1DataModule
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


@dataclass
class Tally:
    """What has happened since the last logged row, on this rank."""

    seconds: float = 0.0  # wall time
    waited: float = 0.0  # seconds of it in which the next batch was not there yet
    samples: int = 0
    frames: int = 0
    flops: int = 0  # of the model, see BatchFlops
    replaced: int = 0  # bad samples in whose place others stood
    loss: dict[str, float] = field(default_factory=dict)  # kind -> sum over samples
    count: dict[str, int] = field(default_factory=dict)  # kind -> samples

    def add(self, batch: Batch, loss: float, flops: int) -> None:
        b, n = batch.embeddings.shape[:2]
        self.samples += b
        self.frames += b * n
        self.flops += flops
        self.replaced += len(batch.replaced)
        self.loss[batch.kind] = self.loss.get(batch.kind, 0.0) + loss * b
        self.count[batch.kind] = self.count.get(batch.kind, 0) + b

    def row(
        self, world: int, gemm: float, reduce: Callable[[Tensor], Tensor], device: torch.device
    ) -> dict[str, float]:
        """The columns of a row: losses averaged over samples and ranks, the rest summed over ranks. A collective.

        `mfu` is the share of `gemm`, the FLOP/s of a rank's matrix products, that the model's own FLOPs are done at.
        """
        kinds = sorted(self.count)  # the same on all ranks: the kind of a step is
        means = [self.loss[kind] / self.count[kind] for kind in kinds]
        *losses, replaced = reduce(torch.tensor([*means, float(self.replaced)], device=device)).tolist()
        by_kind = {f"loss_{kind}": loss for kind, loss in zip(kinds, losses)}
        loss = sum(loss * self.count[kind] for kind, loss in zip(kinds, losses)) / self.samples
        return {
            "loss": loss,
            **by_kind,
            "seconds": self.seconds,
            "samples_per_second": self.samples * world / self.seconds,
            "frames_per_second": self.frames * world / self.seconds,
            "tflops_per_second": self.flops * world / self.seconds / 1e12,
            "mfu": self.flops / self.seconds / gemm,
            "data_wait": self.waited / self.seconds,
            "samples_replaced": round(replaced * world),
        }


class Measure(Callback):
    """Logs a row every `every` optimizer steps, averaged over the steps since the last, and shows the progress line."""

    def __init__(self, steps: int, every: int, label: str, flops: BatchFlops, say: Callable[[str], None]) -> None:
        self.steps, self.every, self.label, self.flops, self.say = steps, every, label, flops, say
        self._bar: tqdm[Any] | None = None
        self._tally = Tally()
        self._gemm = 0.0  # FLOP/s of a rank's matrix products, the mean over the ranks
        self._step = 0  # not the bar's count: a disabled bar does not count, and all ranks must log together
        self._row_began = self._row_waited = self._lr = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = torch.float32 if trainer.precision == "32-true" else torch.bfloat16
        rate = torch.tensor([gemm_rate(pl_module.device, dtype)], device=pl_module.device)
        self._gemm = float(_mean(trainer)(rate))
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
        self._row_began = time.perf_counter()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # read here: the schedule moves on before the batch ends

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # which Lightning has divided it by
        self._tally.add(batch, loss, self.flops(batch))
        if trainer.global_step > self._step:  # the last micro-batch of an optimizer step
            self._step = trainer.global_step
            assert self._bar is not None
            self._bar.set_postfix_str(f"{batch.kind} loss {loss:.4f}", refresh=False)
            self._bar.update()
            if trainer.global_step % self.every == 0 or trainer.global_step == self.steps:
                self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, waited = time.perf_counter(), _waited(trainer)
        self._tally.seconds, self._tally.waited = now - self._row_began, waited - self._row_waited
        row = self._tally.row(trainer.world_size, self._gemm, _mean(trainer), pl_module.device)
        for logger in trainer.loggers:
            logger.log_metrics({**row, "lr": self._lr}, step=trainer.global_step)
        self._row_began, self._row_waited, self._tally = now, waited, Tally()

    def gradient(self, norm: float, skipped: bool) -> None:
        """Is told of the gradient norm of each optimizer step, and whether it is skipped."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()  # what is said of the exception is to stand on a line of its own


def _waited(trainer: Trainer) -> float:
    """Seconds for which the loader has kept this rank waiting."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, Gen1DataModule)
    return data.waited


def _mean(trainer: Trainer) -> Callable[[Tensor], Tensor]:
    return lambda tensor: trainer.strategy.reduce(tensor, reduce_op="mean")  # type: ignore[return-value]
