"""strategy.reduce: in which format the gradients of micro-batches and ranks are summed."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.ranks import in_ranks
from gen1_train.errors import UserError
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from gen1_train.training.strategies.zero import zero_config
from tests.training.strategies.linear import MICRO_BATCHES, Linear, begin, fit, gradients
from tests.training.strategies.table import REFERENCE, config

ZERO = ("zero1", "zero2", "zero3")
FP32, BF16 = 2.0**-22, 2.0**-9  # at least one rounding of the largest sums


@dataclass(frozen=True)
class Sum:
    strategy: str
    reduce: str
    precision: str = "bf16-mixed"
    skips: bool = False  # optimizer states are in CPU memory, and a step before is skipped, whose gradients are NaN


STRATEGIES = ("ddp", *ZERO, "fsdp")
SUMS = [Sum(name, reduce) for name in STRATEGIES for reduce in ("fp32", "bf16")]
SUMS += [Sum(name, "fp32", "32-true") for name in STRATEGIES]
SUMS += [Sum(name, reduce, skips=True) for name in ZERO for reduce in ("fp32", "bf16")]


def mean_gradients(rank: int, world: int, sums: list[Sum], folder: Path) -> list[Tensor | None]:
    """What each rank does: it takes a step in each of the settings. Returns the mean gradients, on rank 0."""
    begin(folder)
    made = []
    for each in sums:
        offload = "optimizer" if each.skips else "none"
        settings = StrategyConfig(each.strategy, offload, persist_below=0, reduce=each.reduce)
        module: Any = Linear()
        batches = gradients()[rank::world]
        before = [batches * math.nan] if each.skips else []
        strategy = build_strategy(settings, world, micro_batch=1, gpu=False)
        fit(
            module,
            strategy,
            world,
            torch.cat([*before, batches]),
            1 + each.skips,
            MICRO_BATCHES // world,
            each.precision,
        )
        made.append(None if module.made is None else -module.made)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Sum, int], Tensor]:
    """The mean gradients by setting and number of ranks."""
    alone = [each for each in SUMS if each.strategy in ZERO]  # the others round what they send, and nothing else
    results = {}
    for world, sums in ((1, alone), (2, SUMS)):
        first, *_ = in_ranks(mean_gradients, world, world, sums, tmp_path_factory.mktemp("ranks"), seconds=300)
        results |= {(each, world): mean for each, mean in zip(sums, first, strict=True)}
    return results


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("each", SUMS, ids=lambda each: "-".join(map(str, vars(each).values())))
def test_the_mean_gradient_has_the_bits_of_the_format(made, each):
    """In float32 it is the exact mean up to float32's rounding, on one rank as on two; bfloat16's is not."""
    exact = gradients().double().mean(0)
    errors = [(mean - exact).abs().max() for (which, _), mean in made.items() if which == each]
    assert len(errors) == (2 if each.strategy in ZERO else 1)
    if each.reduce == "fp32":
        assert max(errors) <= FP32
    else:
        assert BF16 / 4 < min(errors) and max(errors) <= 16 * BF16


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("strategy", ZERO)
def test_two_ranks_equal_one_more_closely_in_float32(made, strategy):
    difference = {
        reduce: (made[Sum(strategy, reduce), 2] - made[Sum(strategy, reduce), 1]).abs().max()
        for reduce in ("fp32", "bf16")
    }
    assert difference["fp32"] <= FP32 < BF16 / 4 < difference["bf16"]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_ddp_and_fsdp_sum_micro_batches_in_float32_and_zero_in_bfloat16(made):
    exact = gradients().double().mean(0)
    error = {name: (made[Sum(name, "bf16"), 2] - exact).norm() for name in STRATEGIES}
    assert all(max(error["ddp"], error["fsdp"]) < 0.7 * error[name] for name in ZERO)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (StrategyConfig("zero2", reduce="fp16"), "strategy.reduce=fp16 is not one of fp32, bf16"),
        (StrategyConfig("single", reduce="bf16"), "strategy.reduce=bf16 does not go with strategy=single"),
    ],
)
def test_what_a_strategy_cannot_do_is_refused(settings, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        settings.check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["auto", *STRATEGIES])
def test_float32_gradients_are_not_summed_in_bfloat16(tmp_path, name):
    settings = config(tmp_path, REFERENCE)
    settings.strategy = StrategyConfig(name, reduce="bf16")
    with pytest.raises(UserError, match=r"strategy.reduce=bf16 needs trainer.precision=bf16-mixed, not 32-true"):
        settings.check()
    settings.trainer.precision = "bf16-mixed"
    settings.check()


@pytest.mark.parametrize("name", ZERO)
def test_deepspeed_gets_both_formats(name):
    """What is sent, and what is summed; by default DeepSpeed takes those of the weights."""
    made = zero_config(StrategyConfig(name, reduce="fp32"), micro_batch=1, gpu=False)
    assert (made["communication_data_type"], made["data_types"]) == ("fp32", {"grad_accum_dtype": "fp32"})
    made = zero_config(StrategyConfig(name, reduce="bf16"), micro_batch=1, gpu=False)
    assert not {"communication_data_type", "data_types"} & made.keys()
