"""Stage 3 in this process: one process, no DeepSpeed, a tiny model. `output` names a run below a root."""

from dataclasses import replace
from pathlib import Path

import torch

from gen1_train.config import TrainConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import UNET, CheckpointConfig, CheckpointInfo, begin, commit, latest
from gen1_train.training.metrics import read_metrics
from gen1_train.training.stages import StageConfig, stage_unet
from tests.made import WIDTH, make_shard_set

STAGE = StageConfig("3", "2", 4, temporal=True, structure=False, max_level=0, image_ratio=0.5)
TINY = UNetConfig(channels=[8, 16, 16, 16], heads=[2, 2, 2, 2], groups=8, context_dim=WIDTH, content_dim=WIDTH)


def make_start(root: Path) -> None:
    """A shard set, and a stage 2 to start from."""
    make_shard_set(root / "set")
    before = replace(STAGE, name="2", temporal=False)
    torch.manual_seed(0)
    start = SpatioTemporalUNet(stage_unet(TINY, before)).state_dict()
    info, recorded = CheckpointInfo("2", 1, finished=True), TrainConfig(before, model=TINY).to_yaml()
    commit(begin(root / "start", 1), {UNET: start}, recorded, info, CheckpointConfig())


def config(root: Path, output: str, steps: int) -> TrainConfig:
    made = TrainConfig(replace(STAGE, steps=steps), output=str(root / output), name="run", model=TINY)
    made.data.root, made.data.batch_clips, made.data.workers = str(root / "set"), 4, 0
    made.init.checkpoint = str(root / "start")
    made.trainer.accelerator, made.trainer.precision, made.trainer.devices = "cpu", "32-true", 1
    made.strategy.name, made.log.wandb, made.log.every = "single", "disabled", 1
    made.optim.lr, made.optim.warmup_steps = 1e-3, 3
    made.validation.every = made.validation.edit_every = 0
    made.ema.decays = [0.9]
    return made


def last(root: Path, output: str) -> Path:
    found = latest(root / output / "run" / "stage3")
    assert found is not None
    return found.path


def rows(root: Path, output: str) -> list[tuple[str, str, str]]:
    metrics = read_metrics(root / output / "run" / "stage3" / "metrics.csv")
    return [(row["step"], row["loss"], row["lr"]) for row in metrics]
