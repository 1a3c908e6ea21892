"""One setting rules how long a rank waits in a collective, in all process groups, whoever makes them."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import distributed
from torch.distributed.distributed_c10d import _world
from torch.utils.data import DataLoader

from benchmarks.ranks import in_ranks
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from tests.training.strategies.test_strategy_reduce import Linear, gradients

SECONDS = 77.0


class Waits(Linear):
    """Notes how long this rank would wait in each group."""

    def on_train_end(self) -> None:
        super().on_train_end()
        backends = [group._get_backend(torch.device("cpu")) for group in _world.pg_map]
        self.waits = [backend.options._timeout for backend in backends]


def run(rank: int, strategy: str, folder: Path) -> tuple[int, list[timedelta]]:
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    os.chdir(folder)
    torch.set_num_threads(1)
    module: Any = Waits()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=build_strategy(StrategyConfig(strategy), 2, 1, gpu=False, collective_seconds=SECONDS),
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(gradients()[rank::2]))
    assert distributed.is_initialized()
    return len(module.waits), module.waits


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("strategy", "groups"), [("ddp", 1), ("zero1", 2), ("zero3", 2)])
def test_every_group_gives_up_at_the_same_time(tmp_path: Path, strategy: str, groups: int) -> None:
    for count, waits in in_ranks(run, 2, strategy, tmp_path, seconds=200):
        assert count >= groups  # DeepSpeed has one of its own
        assert waits == [timedelta(seconds=SECONDS)] * count
