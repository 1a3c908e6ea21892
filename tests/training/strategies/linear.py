"""A model of one weight whose gradient is the batch: steps of it show what a strategy does with gradients."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gen1_train.training.callbacks.guard import judge_zero
from gen1_train.training.checkpoints.state import state_of, weights_of
from gen1_train.training.strategies.zero import ZeroStrategy

ELEMENTS = 1000
MICRO_BATCHES = 16  # of all ranks


def gradients() -> Tensor:
    """The gradient of every micro-batch, in numbers that bfloat16 has: (MICRO_BATCHES, ELEMENTS)."""
    return torch.randn(MICRO_BATCHES, ELEMENTS, generator=torch.Generator().manual_seed(0)).bfloat16().float()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ELEMENTS))

    def forward(self, batch: Tensor) -> Tensor:
        return (self.weight * batch.to(self.weight.dtype)).sum()


class Linear(LightningModule):
    """Its gradient is the batch; a step sets the weights to minus the mean gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    @property
    def network(self) -> nn.Module:
        return self.layer

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_train_start(self) -> None:
        if isinstance(self.trainer.strategy, ZeroStrategy):
            judge_zero(self.trainer.strategy, math.isfinite)

    def on_train_end(self) -> None:
        gathered = state_of(self.trainer.strategy).gather(weights_of(self), keep=self.global_rank == 0)
        self.made = gathered.get("layer.weight")


def begin(folder: Path) -> None:
    """Prepares the process of a rank."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    os.chdir(folder)
    torch.set_num_threads(1)


def fit(
    module: Any, strategy: Strategy | str, world: int, batches: Tensor, steps: int, accumulate: int, precision: str
) -> None:
    """Takes steps on a CPU, without anything that Lightning adds."""
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(batches))
