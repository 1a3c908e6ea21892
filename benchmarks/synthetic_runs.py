"""Runs of `gen1-train` for benchmarks, on random latents and from random weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer

from benchmarks.synthetic_sets import random_samples, write_set
from gen1_train.batch import Pool
from gen1_train.cli.app import conf_dir, quoted
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.reporting.rows import read_metrics
from gen1_train.training import run
from gen1_train.training.checkpoints import checkpoint, writing
from gen1_train.training.checkpoints.checkpoint import CheckpointConfig, CheckpointInfo
from gen1_train.training.config import TrainConfig
from gen1_train.training.session import Session
from gen1_train.training.stages import run_folder, stage_unet

ROOT = Path(__file__).parents[1]
CONTENT = 768  # width of the CLIP embeddings
# The depth of Stable Diffusion 1.5, and so the number of its operations and weights, at a fortieth of its width. At a
# tenth, a CPU's passes over the memory of 12.6 M weights, which take a GPU microseconds, are a third of the step.
TINY = ["model=sd15", "model.channels=[8,8,16,16]", "model.heads=[1,1,1,1]", "model.groups=8", "model.context_dim=16"]
QUIET = ["log.wandb=disabled", "validation.every=0", "validation.edit_every=0", "data.image_ratio=0"]


def composed(overrides: list[str]) -> TrainConfig:
    """Composes the config of `gen1-train` from these settings."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [quoted(setting, TrainConfig) for setting in overrides])
        return OmegaConf.to_object(config)  # type: ignore[return-value]


def prepare_run(folder: Path, clip: Pool, model: list[str]) -> list[str]:
    """Writes a set of random latents and a stage 3 of random weights; returns the settings of a stage 4 on them."""
    write_set(folder / "set", {clip: random_samples(clip, 64, CONTENT)}, shard_samples=64, pixels=False)
    stage_3 = composed(["stage=3", *model])
    torch.manual_seed(0)
    weights = SpatioTemporalUNet(stage_unet(stage_3.model, stage_3.stage)).state_dict()
    info = CheckpointInfo("3", 1, finished=True)
    temporary = writing.begin(folder / "start", 1)
    writing.commit(temporary, {checkpoint.UNET: weights}, stage_3.to_yaml(), info, CheckpointConfig())
    return ["stage=4", *model, f"data.root={folder / 'set'}", f"init.checkpoint={folder / 'start'}", *QUIET]


def rows_of(config: TrainConfig) -> list[dict[str, float]]:
    """Reads the rows that a run has logged."""
    rows = read_metrics(run_folder(config.tree, config.stage.name) / "metrics.csv")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def train_with(last: Callback, overrides: list[str]) -> None:
    """Runs `gen1-train` in this process, with one more callback after its own."""
    build = Session.trainer

    def trainer(session: Session, callbacks: list[Callback], *arguments: Any) -> Trainer:
        return build(session, [*callbacks, last], *arguments)

    with patch.object(Session, "trainer", trainer):
        run.train(composed(overrides))


def run_training(overrides: list[str]) -> list[dict[str, float]]:
    """Runs `gen1-train` and returns its rows. Raises CalledProcessError."""
    call = [sys.executable, "-m", "gen1_train.train", *overrides]
    subprocess.run(call, cwd=ROOT, check=True, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    return rows_of(composed(overrides))
