"""The strategy that strategy=auto stands for."""

from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.training.config import TrainConfig
from gen1_train.training.planning import choice, gpus
from gen1_train.training.planning.choice import plan_run
from gen1_train.training.planning.gpus import GIBI
from gen1_train.training.planning.tracing import MicroBatch, PassMemory, Tracer
from gen1_train.training.planning.workload import planned_data
from gen1_train.training.run_files import changed_settings
from gen1_train.training.strategies.config import AUTO, StrategyConfig
from tests.training.planning.test_plan import config, lines
from tests.training.test_run_files import stored


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A plan for eight GPUs, in which activations take next to nothing and are the same for all strategies."""

    def trace(self: Tracer, micro_batch: MicroBatch, *_: object, **__: object) -> PassMemory:
        return PassMemory(1000, 1000 * micro_batch.samples, 0)

    monkeypatch.setattr(Tracer, "trace", trace)
    monkeypatch.setattr(gpus, "gpu_bytes", lambda: None)
    made = config(tmp_path)
    made.strategy = StrategyConfig()
    made.trainer.accelerator = "auto"
    made.trainer.devices = 8
    made.trainer.accumulate = 2  # which tells zero1 and zero2 apart
    made.data.batch_clips = 16
    made.plan_only = True
    return made


def chosen(made: TrainConfig) -> tuple[str, str]:
    planned = plan_run(made, planned_data(made, None))
    assert planned.config.strategy.name == planned.ranks.layout.strategy != AUTO
    assert made.strategy.name == AUTO
    return planned.config.strategy.name, planned.reason or ""


def needed(made: TrainConfig, name: str) -> float:
    """The GiB that a GPU must have for a strategy."""
    named = choice._named(made, name)
    return plan_run(named, planned_data(named, None)).memory.total * gpus.MARGIN / GIBI


def test_the_first_strategy_that_fits_is_chosen_and_reported(made):
    sizes = {name: needed(made, name) for name in ("zero1", "zero2", "zero3")}
    assert sizes["zero1"] > sizes["zero2"] > sizes["zero3"]
    for name, size in sizes.items():
        made.plan.gigabytes = size * 1.0001
        got, reason = chosen(made)
        assert got == name and reason.startswith(f"strategy={name}: it needs")
        assert all((f"{other} would need" in reason) == (other < name) for other in sizes)
    made.plan.gigabytes = sizes["zero3"] * 0.999
    got, reason = chosen(made)
    assert got == "zero3" and "none fits" in reason


def test_the_memory_of_this_machines_gpus_is_taken_if_the_config_gives_none(made, monkeypatch):
    monkeypatch.setattr(gpus, "gpu_bytes", lambda: int(needed(made, "zero2") * 1.001 * GIBI))
    assert chosen(made)[0] == "zero2"
    monkeypatch.setattr(gpus, "gpu_bytes", lambda: 80 * GIBI)
    assert chosen(made)[0] == "zero1"


def test_settings_for_whole_weights_are_respected(made):
    made.optim.name = "adamw8bit"
    assert chosen(made) == ("ddp", "strategy=ddp: optim.name=adamw8bit needs it")
    made.optim.name, made.ema.device = "adamw", "cpu"
    assert chosen(made) == ("ddp", "strategy=ddp: ema.device=cpu needs it")
    plan = plan_run(made, planned_data(made, None)).memory
    assert "EMA" not in plan.resident
    made.ema.device = "same"
    assert chosen(made)[0] == "zero2"


def test_what_is_assumed_is_reported(made):
    assert chosen(made) == (
        "zero2",
        "strategy=zero2: the memory of the GPUs is not known here; with plan.gigabytes= the plan chooses",
    )
    assert "strategy=zero2: the memory of the GPUs is not known here" in lines(made)
    made.trainer.accelerator = "cpu"
    assert chosen(made) == ("zero1", "strategy=zero1: on CPUs it is assumed to fit")
    made.trainer.devices = 1
    assert chosen(made) == ("single", "strategy=single: there is one process")


def test_settings_that_a_strategy_does_not_go_with_are_respected(made):
    made.plan.gigabytes = 1e-6  # none fits
    made.trainer.compile = True
    assert chosen(made)[0] == "zero2"
    made.trainer.compile = False
    made.customize.lora_rank = 2
    assert chosen(made)[0] == "zero2"
    made.customize.lora_rank = None
    made.strategy.offload = "all"
    assert chosen(made) == ("zero3", "strategy=zero3: strategy.offload=all needs it")
    made.strategy.offload = "optimizer"
    made.trainer.devices = 1
    made.plan.gigabytes = 100.0
    assert chosen(made)[0] == "zero1"  # `single` offloads nothing


def test_a_strategy_that_is_named_is_taken(made):
    made.plan.gigabytes = 1e-6
    made.strategy.name = "ddp"
    planned = plan_run(made, planned_data(made, None))
    assert planned.config is made and planned.reason is None


def test_a_resumed_run_does_not_report_the_choice_as_a_change(made):
    made.output = str(made.tree)
    named = choice._named(made, "zero1")
    resume = stored(named)
    assert changed_settings(resume, made) == []
    assert changed_settings(resume, choice._named(made, "zero2")) == ["strategy.name: zero1 -> zero2"]


def test_a_batch_that_cannot_be_split_is_refused(made):
    made.data.batch_clips = 17
    with pytest.raises(UserError, match="make it a multiple of 16"):
        plan_run(made, planned_data(made, None))
