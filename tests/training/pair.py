"""Two real processes that train as ranks 0 and 1, as a cluster's launcher starts them."""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.ranks import environment, free_ports
from gen1_train.cli import end
from gen1_train.config import TrainConfig
from gen1_train.training.ending import Ending


def run_pair(
    task: Callable[..., None], folder: Path, *arguments: Any, seconds: float = 60
) -> tuple[list[int | None], list[str]]:
    """Calls `task(rank, *arguments)` in two processes that find each other; their exit codes and what they said.

    A process that lives for longer than so many `seconds` is killed.
    """
    (port,) = free_ports(1)
    makers = [(rank, folder / f"{rank}.err", task, arguments) for rank in range(2)]
    processes = [get_context("spawn").Process(target=_start, args=given) for given in makers]
    for rank, process in enumerate(processes):
        with patch.dict(os.environ, environment(rank, 2, port), CUDA_VISIBLE_DEVICES=""):
            process.start()
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()
    return [process.exitcode for process in processes], [(folder / f"{rank}.err").read_text() for rank in range(2)]


def _start(rank: int, errors: Path, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with open(errors, "w") as stream:
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    try:
        task(rank, *arguments)
    except Exception as error:
        end("gen1-train", error, TrainConfig)
    sys.exit(0)


class Small(LightningModule):
    """One weight; what `step` does at each step is the test's business."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__()
        self.step, self.layer = step, nn.Linear(1, 1)

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        self.step(number)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_small(step: Callable[[int], None], *callbacks: Callback, ending: Ending | None = None) -> None:
    """Two steps of DDP on two CPU processes."""
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=2,
        callbacks=[ending or Ending(), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Small(step), DataLoader(torch.ones(8, 1)))
