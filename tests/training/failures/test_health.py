"""The comparison of the ranks before training: the judgment, the pairs, and two real ranks of which one is slow."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.training.failures.health import (
    HealthCheck,
    Rates,
    check_health,
    health_line,
    logger,
    measure_rates,
    median_of,
    neighbors,
    rings,
    slow_ranks,
)
from tests.training.pair import run_pair, train_small

GOOD = Rates(products=700e12, memory=3e12, machine=200e9, network=40e9)


@pytest.mark.parametrize("rate", ["products", "memory", "machine", "network"])
@pytest.mark.parametrize(("share", "slow"), [(0.75, []), (0.65, [2])])
def test_a_rank_is_slow_below_a_share_of_the_median_of_any_rate(rate: str, share: float, slow: list[int]) -> None:
    ranks = [GOOD, GOOD, replace(GOOD, **{rate: share * getattr(GOOD, rate)}), replace(GOOD, **{rate: 1e18})]
    assert slow_ranks(ranks) == slow


def test_rates_that_were_not_measured_do_not_count() -> None:
    ranks = [replace(GOOD, network=math.nan), replace(GOOD, machine=math.nan, memory=1e12), GOOD]
    assert median_of(ranks) == GOOD and slow_ranks(ranks) == [1]
    assert math.isnan(median_of([replace(GOOD, network=math.nan)]).network)
    assert slow_ranks([replace(GOOD, network=math.nan, machine=math.nan)] * 2) == []


def test_slow_ranks_are_named_with_host_and_rates() -> None:
    ranks = [*[GOOD] * 6, replace(GOOD, products=70e12)]
    machines = [f"node{rank // 2}" for rank in range(7)]
    line = health_line(ranks, machines)
    assert line is not None and line.startswith(
        "slower than 0.7 of the median of 7 ranks: rank 6 on node3 (70 TFLOP/s in "
    )
    assert "3e+03 GB/s in memory, 200 GB/s to neighbors on the machine, 40 GB/s to neighbors on other machines)" in line
    assert "; the median: 700 TFLOP/s" in line
    assert health_line(ranks[:6], machines[:6]) is None
    many = [*[GOOD] * 99, *[replace(GOOD, memory=1e12)] * 9]
    assert " and 6 more; the median" in str(health_line(many, ["node"] * 108))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_in_each_round_partners_are_each_other_s_and_all_have_one_in_an_even_ring(size: int) -> None:
    ring = [10 * place for place in range(size)]
    pairs = {rank: neighbors(ring, rank) for rank in ring}
    for name in ("first", "second"):
        partners = {rank: getattr(pair, name) for rank, pair in pairs.items()}
        alone = [rank for rank, partner in partners.items() if partner is None]
        assert len(alone) == size % 2
        assert all(
            partner != rank and partners[partner] == rank for rank, partner in partners.items() if rank not in alone
        )
    if size > 2:  # a slow rank does not make both rounds of its neighbor slow
        assert all(pair.first != pair.second for pair in pairs.values())


def test_the_rings_are_within_machines_and_between_equal_places_on_them() -> None:
    machines = [f"node{rank // 8}" for rank in range(1024)]
    assert rings(machines, 17) == (list(range(16, 24)), list(range(1, 1024, 8)))
    assert rings(["a", "b", "a"], 2) == ([0, 2], [2])  # no other machine has a second rank


class Checking(Callback):
    """Measures on CPUs, where a run would not."""

    def __init__(self, mode: str, slow: int) -> None:
        self.mode = mode
        self.slow = slow

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        def measured(device: torch.device, dtype: torch.dtype, machines: list[str]) -> Rates:
            rates = measure_rates(device, dtype, machines)
            assert rates.products > 0 and rates.memory > 0 and rates.machine > 0 and math.isnan(rates.network)
            return replace(GOOD, memory=1e9) if trainer.global_rank == self.slow else GOOD

        check_health(self.mode, trainer.strategy.root_device, torch.float32, measured)


def check(rank: int, folder: Path, mode: str) -> None:
    logger.addHandler(logging.FileHandler(folder / f"{rank}.log"))
    train_small(lambda number: None, HealthCheck("stop"), Checking(mode, slow=1))


@pytest.mark.slow
def test_a_slow_rank_is_warned_of(tmp_path: Path) -> None:
    codes, outputs = run_pair(check, tmp_path, tmp_path, "warn")
    assert codes == [0, 0], outputs
    (line,) = (tmp_path / "0.log").read_text().splitlines()
    assert line.startswith("slower than 0.7 of the median of 2 ranks: rank 1 on ") and "trainer.health=off" in line


@pytest.mark.slow
def test_all_ranks_stop_because_of_a_slow_one(tmp_path: Path) -> None:
    codes, outputs = run_pair(check, tmp_path, tmp_path, "stop")
    assert codes == [2, 2], outputs
    (line,) = [line for text in outputs for line in text.splitlines() if "error" in line]
    assert "error: slower than 0.7" in line and "rank 1 on " in line and "exclude its host" in line
