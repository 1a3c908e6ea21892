"""One setting rules how long a rank waits in a collective, in the process groups of DeepSpeed, too."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.distributed_c10d import _world

from benchmarks.ranks import in_ranks
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from tests.training.strategies.linear import Linear, begin, fit, gradients

SECONDS = 77.0


class Waits(Linear):
    """Notes how long this rank would wait in each group."""

    def on_train_end(self) -> None:
        super().on_train_end()
        backends = [group._get_backend(torch.device("cpu")) for group in _world.pg_map]
        self.waits = [backend.options._timeout for backend in backends]


def run(rank: int, strategy: str, folder: Path) -> tuple[int, list[timedelta]]:
    begin(folder)
    module: Any = Waits()
    chosen = build_strategy(StrategyConfig(strategy), 2, 1, gpu=False, collective_seconds=SECONDS)
    fit(module, chosen, 2, gradients()[rank::2], steps=1, accumulate=1, precision="32-true")
    assert distributed.is_initialized()
    return len(module.waits), module.waits


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("strategy", "groups"), [("ddp", 1), ("zero1", 2), ("zero3", 2)])
def test_every_group_gives_up_at_the_same_time(tmp_path: Path, strategy: str, groups: int) -> None:
    for count, waits in in_ranks(run, 2, strategy, tmp_path, seconds=200):
        assert count >= groups  # DeepSpeed has one of its own
        assert waits == [timedelta(seconds=SECONDS)] * count
