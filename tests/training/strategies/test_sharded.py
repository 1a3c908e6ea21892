"""FSDP2: what each rank holds, contributes and reads, also where copies of the state are divided."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks.ranks import in_ranks
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoints.state import state_of, weights_of
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.sharded import ShardedStrategy, divided_layers
from gen1_train.training.strategies.strategy import build_strategy
from tests.training.strategies.linear import ELEMENTS, Linear, begin, fit, gradients
from tests.training.strategies.table import TINY

RANKS = [(3, 3), (4, 2)]  # all ranks, and those that divide a copy; a third of the elements is no whole number


class Inspected(Linear):
    """Keeps what a rank sees of the state at the end."""

    def on_train_end(self) -> None:
        super().on_train_end()
        strategy: Any = self.trainer.strategy
        assert self.device == strategy.root_device
        state, entries = state_of(strategy), weights_of(self)
        self.pieces = [(start, part.clone()) for _, start, part in state.pieces(entries)]
        (weight,) = (weight for weight, _ in entries.values())
        self.norm = float(strategy.whole_norm(state.masters()[0].norm()))
        self.read: list[tuple[int, int]] = []

        def ramp(start: int, count: int) -> Tensor:
            self.read.append((start, count))
            return torch.arange(start, start + count).float()

        state.put_elements(weight, None, ramp)
        self.put = state.gather(entries, keep=self.global_rank == 0)


def inspect(rank: int, world: int, divided: int, folder: Path) -> dict[str, Any]:
    begin(folder)
    module: Any = Inspected()
    config = StrategyConfig("fsdp", shard_within="world" if divided == world else "node")
    with patch.object(ShardedStrategy, "ranks_of_a_copy", divided):  # as if nodes had this many
        fit(module, build_strategy(config, world, 1, gpu=False), world, gradients()[rank::world], 1, 4, "32-true")
    return {name: getattr(module, name) for name in ("made", "pieces", "norm", "read", "put")}


@pytest.fixture(scope="module", params=RANKS, ids=["of three", "two of two"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    world, divided = request.param
    return in_ranks(inspect, world, world, divided, tmp_path_factory.mktemp("ranks"), seconds=200)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_step_is_that_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    used = torch.cat([gradients()[rank :: len(ranks)][:4] for rank in range(len(ranks))])
    exact = used.double().mean(0)
    assert (ranks[0]["made"] + exact).abs().max() < 1e-6
    assert all(rank["norm"] == pytest.approx(float(exact.norm()), rel=1e-6) for rank in ranks)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_write_each_element_once(ranks: list[dict[str, Any]]) -> None:
    pieces = sorted((piece for rank in ranks for piece in rank["pieces"]), key=lambda piece: piece[0])
    assert all(rank["pieces"] for rank in ranks)  # with hybrid sharding, no node waits for another one to write
    assert [start for start, _ in pieces] == [sum(len(part) for _, part in pieces[:i]) for i in range(len(pieces))]
    assert torch.equal(torch.cat([part for _, part in pieces]), ranks[0]["made"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_read_their_rows_only(ranks: list[dict[str, Any]]) -> None:
    divided = 3 if len(ranks) == 3 else 2
    rows = -(-ELEMENTS // divided)
    for number, rank in enumerate(ranks):
        first = number % divided * rows
        assert rank["read"] == [(first, min(rows, ELEMENTS - first))]
    assert torch.equal(ranks[0]["put"]["layer.weight"], torch.arange(ELEMENTS).float())


def test_every_large_weight_is_in_a_layer_that_is_gathered_on_its_own() -> None:
    """What is gathered with the network stays in memory for whole passes."""
    unet = SpatioTemporalUNet(TINY)
    inside = {id(weight) for layer in divided_layers(unet) for weight in layer.parameters()}
    between = {name.split(".")[0] for name, weight in unet.named_parameters() if id(weight) not in inside}
    assert between == {"conv_in", "time_embedding", "conv_norm_out", "conv_out"}
