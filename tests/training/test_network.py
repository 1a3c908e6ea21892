"""Rates stated at a step's number, and what a torch scheduler makes of them in a run that is resumed."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from gen1_train.errors import UserError
from gen1_train.training.network import SCHEDULES, NetworkModule, OptimConfig, cosine, rate_at, resumed_at, warmup


def shares(schedule: str, steps: int, warmup_steps: int = 4, final: float = 0.1, count: int | None = None):
    return [rate_at(step, schedule, warmup_steps, steps, final) for step in range(count or steps)]


def test_warmup_reaches_the_rate_and_keeps_it():
    assert [warmup(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0, 0) == 1.0


def test_constant_is_the_warmup_alone():
    assert shares("constant", 8) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine_falls_from_the_end_of_the_warmup_to_the_last_step():
    made = shares("cosine", 13, warmup_steps=5)
    assert made[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert made[8] == pytest.approx(0.55)  # half way down in half of the steps
    assert made[12] == 0.1
    assert all(a > b for a, b in pairwise(made[4:]))
    fallen = [1 - share for share in made[4:]]
    assert [0.9 - share for share in reversed(fallen)] == pytest.approx(fallen)  # the wave's symmetry


def test_cosine_without_warmup_starts_at_the_whole_rate():
    made = shares("cosine", 5, warmup_steps=0, final=0.0)
    assert made[0] == 1 and made[2] == pytest.approx(0.5) and made[4] == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (1, 1), (1, 4), (4, 4), (5, 4), (3, 10), (0, 0)])
def test_short_stages_have_rates_too(schedule, steps, warmup_steps):
    """Also past the last step: a scheduler moves on once more after it."""
    made = shares(schedule, steps, warmup_steps, count=steps + 2)
    assert all(0 < share <= 1 for share in made)
    assert made[:warmup_steps] == [warmup(step, warmup_steps) for step in range(len(made))][:warmup_steps]


def test_past_the_last_step_cosine_stays_where_it_is():
    assert cosine(100, 3, 10, 0.25) == 0.25
    assert cosine(0, 3, 10, 0.25) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_scheduler_has_the_rates_of_a_straight_one_to_the_bit(schedule):
    rate = partial(rate_at, schedule=schedule, warmup_steps=3, steps=10, final_share=0.1)

    def rates(start: int, stop: int) -> list[float]:
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
        scheduler = LambdaLR(optimizer, resumed_at(start, rate))
        made = []
        for _ in range(start, stop):
            made.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return made

    straight = rates(0, 10)
    assert straight == [3e-4 * rate(step) for step in range(10)]
    for stopped in range(10):
        assert rates(0, stopped) + rates(stopped, 10) == straight


class Small(NetworkModule):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("spatial", "temporal", "frozen")})
        self.parts["frozen"].requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        return self.parts


def rates(scales: list[str]) -> dict[str, float]:
    """The learning rate of each weight after the warm-up."""
    module, optim = Small(), OptimConfig(lr=1e-3, warmup_steps=0, lr_scales=scales)
    names = {parameter: name for name, parameter in module.network.named_parameters()}
    made = module.adamw(optim, 0, 10)["optimizer"]
    assert sum(len(group["params"]) for group in made.param_groups) == 4
    return {names[parameter]: group["lr"] for group in made.param_groups for parameter in group["params"]}


def test_new_layers_may_have_a_learning_rate_of_their_own():
    assert set(rates([]).values()) == {1e-3}
    found = rates(["temporal.bias:0.5", "*temporal*:10"])
    assert found == pytest.approx(
        {"spatial.weight": 1e-3, "spatial.bias": 1e-3, "temporal.weight": 1e-2, "temporal.bias": 5e-4}
    )


@pytest.mark.parametrize("glob", ["*temporel*", "frozen*"])
def test_a_glob_of_learning_rates_that_matches_nothing_is_refused(glob):
    with pytest.raises(UserError, match=r"optim\.lr_scales has '.*', which matches no weight that is trained: give"):
        rates([f"{glob}:10"])


@pytest.mark.parametrize("text", ["*temporal*", "*:0", ":10", "*:-1", "*:nan", "*:1e9", "*:ten", ""])
def test_a_factor_that_cannot_be_is_refused(text):
    with pytest.raises(UserError, match=r"optim\.lr_scales has .*: give GLOB:FACTOR, such as \*temporal\*:10"):
        OptimConfig(lr_scales=[text]).check()
