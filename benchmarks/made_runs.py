"""Runs for benchmarks: `gen1-train` on random latents, from random weights."""

import subprocess
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from benchmarks.made_sets import random_samples, write_set
from gen1_train.batch import Pool
from gen1_train.cli import conf_dir, quoted
from gen1_train.config import TrainConfig
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training import checkpoint
from gen1_train.training.checkpoint import CheckpointConfig, CheckpointInfo
from gen1_train.training.metrics import read_metrics
from gen1_train.training.stages import run_folder, stage_unet

ROOT = Path(__file__).parents[1]
CONTENT = 768  # width of the CLIP embeddings
QUIET = ["log.wandb=disabled", "validation.every=0", "validation.edit_every=0", "data.image_ratio=0"]


def composed(given: list[str]) -> TrainConfig:
    """The config that `gen1-train` makes of these settings."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return OmegaConf.to_object(compose("train", [quoted(setting, TrainConfig) for setting in given]))  # type: ignore[return-value]


def prepared(folder: Path, clip: Pool, model: list[str]) -> list[str]:
    """The settings of a stage 4 of a model on random latents; the set and a stage 3 of random weights are made."""
    write_set(folder / "set", {clip: random_samples(clip, 64, CONTENT)}, shard_samples=64, pixels=False)
    before = composed(["stage=3", *model])
    torch.manual_seed(0)
    weights = SpatioTemporalUNet(stage_unet(before.model, before.stage)).state_dict()
    info = CheckpointInfo("3", 1, finished=True)
    start = checkpoint.begin(folder / "start", 1)
    checkpoint.commit(start, {checkpoint.UNET: weights}, before.to_yaml(), info, CheckpointConfig())
    return ["stage=4", *model, f"data.root={folder / 'set'}", f"init.checkpoint={folder / 'start'}", *QUIET]


def rows_of(config: TrainConfig) -> list[dict[str, float]]:
    """What a run has logged."""
    found = read_metrics(run_folder(config.tree, config.stage.name) / "metrics.csv")
    return [{name: float(value) for name, value in row.items() if value} for row in found]


def trained(given: list[str]) -> list[dict[str, float]]:
    """Calls `gen1-train` and returns its rows. Raises CalledProcessError."""
    call = [sys.executable, "-m", "gen1_train.train", *given]
    subprocess.run(call, cwd=ROOT, check=True, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    return rows_of(composed(given))
