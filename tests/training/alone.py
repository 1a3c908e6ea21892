"""Stage 3 in this process, without DeepSpeed, of a tiny model. `output` names a run in a root folder."""

from dataclasses import replace
from pathlib import Path

import torch

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import UNET, CheckpointConfig, CheckpointInfo, latest
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig
from gen1_train.training.stages import StageConfig, stage_unet
from tests.made import WIDTH, make_shard_set

STAGE = StageConfig("3", "2", 4, temporal=True, structure=False, max_level=0, image_ratio=0.5)
TINY = UNetConfig(
    channels=[8, 16],
    attention=[True, False],
    heads=[2, 2],
    layers=1,
    groups=8,
    context_dim=WIDTH,
    content_dim=WIDTH,
)


def make_start(root: Path) -> None:
    """Writes a shard set and a stage 2 to start from."""
    make_shard_set(root / "set")
    before = replace(STAGE, name="2", temporal=False)
    torch.manual_seed(0)
    start = SpatioTemporalUNet(stage_unet(TINY, before)).state_dict()
    info, recorded = CheckpointInfo("2", 1, finished=True), TrainConfig(before, model=TINY).to_yaml()
    commit(begin(root / "start", 1), {UNET: start}, recorded, info, CheckpointConfig())


def config(root: Path, output: str, steps: int) -> TrainConfig:
    config = TrainConfig(replace(STAGE, steps=steps), output=str(root / output), name="run", model=TINY)
    config.data.root = str(root / "set")
    config.data.batch_clips = 4
    config.data.workers = 0
    config.init.checkpoint = str(root / "start")
    config.trainer.accelerator = "cpu"
    config.trainer.precision = "32-true"
    config.trainer.devices = 1
    config.strategy.name = "single"
    config.log.wandb = "disabled"
    config.log.every = 1
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 3
    config.validation.every = 0
    config.validation.edit_every = 0
    config.ema.decays = [0.9]
    return config


def last(root: Path, output: str) -> Path:
    checkpoint = latest(root / output / "run" / "stage3")
    assert checkpoint is not None
    return checkpoint.path


def rows(root: Path, output: str) -> list[tuple[str, str, str]]:
    metrics = read_metrics(root / output / "run" / "stage3" / "metrics.csv")
    return [(row["step"], row["loss"], row["lr"]) for row in metrics]
