"""Two real processes that train as ranks 0 and 1, started like a cluster's launcher starts them."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.ranks import environment, free_ports
from gen1_train.cli.app import end
from gen1_train.system.console import console
from gen1_train.system.processes import run_without_finalizing
from gen1_train.training.config import TrainConfig
from gen1_train.training.failures.rank_failure import RankFailure
from tests.running import ENVIRONMENT, REPOSITORY, command


def run_pair(
    task: Callable[..., None], folder: Path, *arguments: Any, seconds: float = 120
) -> tuple[list[int], list[str]]:
    """Calls `task(rank, *arguments)` in two processes that find each other.

    Returns their exit codes and their standard errors. A process that takes longer than `seconds` is killed.
    """
    (port,) = free_ports(1)
    call, logs = folder / "call.pickle", [folder / f"{rank}.err" for rank in range(2)]
    call.write_bytes(pickle.dumps((task, arguments)))
    processes = []
    for rank, log in enumerate(logs):
        with open(log, "w") as errors:
            variables = {**ENVIRONMENT, **environment(rank, 2, port)}
            line = command("tests.training.pair", str(rank), str(call))
            processes.append(subprocess.Popen(line, cwd=REPOSITORY, env=variables, stderr=errors))
    for process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return [process.wait() for process in processes], [log.read_text() for log in logs]


def run_rank(rank: int, call: Path) -> None:
    """What each of the processes does."""
    task, arguments = pickle.loads(call.read_bytes())
    with console("gen1-train"):
        try:
            task(rank, *arguments)
        except Exception as error:
            end(error, TrainConfig)


class Small(LightningModule):
    """A model of one weight; the test defines what `step` does in each step."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__()
        self.step = step
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        self.step(number)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_small(
    step: Callable[[int], None], *callbacks: Callback, failure: RankFailure | None = None, steps: int = 2
) -> None:
    """A few steps of DDP on two CPU processes."""
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=steps,
        callbacks=[failure or RankFailure(), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Small(step), DataLoader(torch.ones(2 * steps + 4, 1)))


if __name__ == "__main__":
    run_without_finalizing(lambda: run_rank(int(sys.argv[1]), Path(sys.argv[2])))
