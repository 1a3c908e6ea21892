"""The experiments of one GPU: each stage trains its part of the weights, and nothing else changes."""

from fnmatch import fnmatch

import pytest
import torch

from gen1_train.cli.compose import compose_config
from gen1_train.training.checkpoints.checkpoint import Checkpoint, latest
from gen1_train.training.config import TrainConfig
from tests.made import make_shard_set, make_stable_diffusion
from tests.running import UNET, run_well

SMALL = [  # a model and a set for tests; everything else is the experiment's own
    "model=tiny",
    *(f"model.{name}={values}".replace(" ", "").lower() for name, values in UNET.items()),
    "model.checkpointing=[true,true]",
    "data.batch_clips=2",
    "trainer.accumulate=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "optim.warmup_steps=0",
    "log.wandb=disabled",
    "validation.every=0",
    "validation.edit_every=0",
    "data.workers=0",
    "stage.max_level=0",  # the set has no other latents
]
STAGES = ("1", "2", "3", "4", "5")


def experiment(stage: str) -> list[str]:
    return ["experiment=one_gpu", "stage=1"] if stage == "1" else [f"experiment=one_gpu_{stage}"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The last checkpoint of each stage, of two steps."""
    root = tmp_path_factory.mktemp("one-gpu")
    make_shard_set(root / "set")
    make_stable_diffusion(root / "sd")
    found = {}
    for stage in STAGES:
        source = [f"init.from={root / 'sd'}"] if stage == "1" else [f"data.root={root / 'set'}", "stage.steps=2"]
        run_well("gen1_train.train", *experiment(stage), f"output={root / 'runs'}", *SMALL, *source)
        checkpoint = latest(root / "runs" / "one_gpu" / f"stage{stage}")
        assert checkpoint is not None and checkpoint.info.finished
        found[stage] = checkpoint
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_changes_what_it_trains(checkpoints: dict[str, Checkpoint], stage: str) -> None:
    trains = settings(stage).stage.trains
    before, after = checkpoints[str(int(stage) - 1)].weights(), checkpoints[stage].weights("raw")
    grown = after["conv_in.weight"][:, : before["conv_in.weight"].shape[1]]  # in stage 4
    common = {**after, "conv_in.weight": grown}
    changed = {name for name in before if not torch.equal(common[name], before[name])}
    named = {name for name in before if any(fnmatch(name, glob) for glob in trains)}
    assert changed <= named and (changed or stage == "3")  # in stage 3, all that is trained is new
    moments = {name.rpartition(".")[0] for name in checkpoints[stage].moments()}
    assert moments == {name for name in after if any(fnmatch(name, glob) for glob in trains)} < set(after)


def settings(stage: str, *more: str) -> TrainConfig:
    return compose_config("train", TrainConfig, [*experiment(stage), "data.root=x", *more])


def test_it_is_one_process_with_small_moments() -> None:
    for stage in (*STAGES, "customize"):
        config = settings(stage, *(["images=x"] if stage == "customize" else []))
        config.check()
        assert config.stage.name == stage
        assert (config.optim.name, config.ema.device, config.strategy.name) == ("adamw8bit", "cpu", "single")
        assert config.trainer.devices == 1 and all(config.model.checkpointing)
    assert settings("3", "stage.trains=[conv_in.*]").stage.trains == ["conv_in.*"]  # the command line has the last word
