"""Customizations in this process: the miniature's networks, a random stage 5 of a smaller UNet, images, prior clips."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from gen1_train.cli.app import conf_dir
from gen1_train.data.manifest import Manifest
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import UNET, Checkpoint, CheckpointConfig, CheckpointInfo, latest
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig
from gen1_train.training.stages import StageConfig, stage_unet
from tests.made import make_shard_set
from tests.made_checkpoint import miniature_estimators

WIDTH, HEIGHT = 48, 32
TINY = UNetConfig(
    channels=[8, 16],
    attention=[True, False],  # the middle has a transformer all the same
    heads=[2, 2],
    layers=1,
    groups=4,
    context_dim=64,
    content_dim=64,
    max_frames=4,
)


def stage_five() -> TrainConfig:
    return TrainConfig(StageConfig(**yaml.safe_load((conf_dir() / "stage" / "5.yaml").read_text())), model=TINY)


def write_start(run: Path, stage: str = "5") -> None:
    """A finished checkpoint of a stage with random weights, none of which is zero."""
    made = stage_five()
    torch.manual_seed(0)
    weights = SpatioTemporalUNet(stage_unet(TINY, made.stage)).state_dict()
    weights = {name: weight + 0.02 * torch.randn_like(weight) for name, weight in weights.items()}
    info = CheckpointInfo(stage, 10, True, {"step": 10}, miniature_estimators(), [f"{WIDTH}x{HEIGHT}"])
    commit(begin(run, 10), {UNET: weights}, made.to_yaml(), info, CheckpointConfig())


def make_world(root: Path, images: int = 9) -> Path:
    """ROOT/start, ROOT/images, ROOT/prior; gives ROOT."""
    write_start(root / "start")
    (root / "images").mkdir()
    for number in range(images):
        values = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / "images" / f"{number}.png")
    make_shard_set(root / "prior", clips=4, images=2, width=WIDTH, height=HEIGHT, frames=4, shards=1)
    manifest = Manifest.load(root / "prior")
    manifest.estimators = miniature_estimators()
    manifest.save(root / "prior")
    return root


def config(root: Path, name: str, steps: int = 4, rank: int | None = None, prior: bool = True) -> TrainConfig:
    """The settings of conf/stage/customize.yaml where nothing else is said, and quick ones."""
    values = yaml.safe_load((conf_dir() / "stage" / "customize.yaml").read_text())
    made = TrainConfig(StageConfig(**{**values["stage"], "steps": steps}), model=TINY)
    made.name = name
    made.output = str(root / "runs")
    made.images = str(root / "images")
    made.data.root = str(root / "prior") if prior else None
    made.data.batch_clips = 2
    made.data.workers = 0
    made.init.checkpoint = str(root / "start")
    made.customize.lora_rank = rank
    made.trainer.accelerator = "cpu"
    made.trainer.precision = "32-true"
    made.trainer.devices = 1
    made.strategy.name = "single"
    made.log.wandb = "disabled"
    made.log.every = 1
    made.optim.lr = 1e-3
    made.optim.warmup_steps = 2
    made.ema.decays = [0.9]
    made.checkpoint.every = 2
    made.checkpoint.keep = 4
    made.validation.every = 2
    made.validation.clips = 2
    made.validation.edit_every = 0
    return made


def run_folder(root: Path, name: str) -> Path:
    return root / "runs" / name / "customize"


def last(root: Path, name: str) -> Checkpoint:
    found = latest(run_folder(root, name))
    assert found is not None and found.info.finished
    return found


def changed(made: TrainConfig, **settings: Any) -> TrainConfig:
    """With settings by their dotted names, a __ for each dot."""
    for name, value in settings.items():
        *sections, field = name.split("__")
        place: Any = made
        for section in sections:
            place = getattr(place, section)
        assert hasattr(place, field)
        setattr(place, field, value)
    return made
