"""Checkpoints without training: a tiny UNet or prior with random weights, and the miniature's estimators."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from gen1_train.cli.app import conf_dir
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from gen1_train.model.prior import PriorConfig, PriorNetwork
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import INFO, PRIOR, UNET, CheckpointConfig, CheckpointInfo, sha256
from gen1_train.training.checkpoints.info import HASH, digest
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig
from gen1_train.training.prior.config import PriorStageConfig, PriorTrainConfig
from gen1_train.training.stages import StageConfig, stage_unet
from tests.running import WEIGHTS


@cache
def miniature_estimators() -> dict[str, Any]:
    """Returns the estimators as the manifest of a shard set of recipe=tiny records them."""
    autoencoder = Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))
    depth = DepthConfig(str(WEIGHTS / "depth"), 64, 16)
    clip = ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None)
    return {
        "autoencoder": {
            "config": {"path": str(WEIGHTS / "autoencoder"), "chunk": 16},
            "fingerprint": autoencoder.fingerprint,
            "scale": autoencoder.scale,
            "factor": autoencoder.factor,
        },
        "structure": {"kind": "depth", "config": asdict(depth), "fingerprint": DepthEstimator(depth).fingerprint},
        "clip": {"config": asdict(clip), "fingerprint": ClipEncoder(clip).fingerprint, "width": 64},
    }


def write_checkpoint(
    run: Path,
    seed: int = 0,
    temporal: float = 0.05,
    buckets: tuple[str, ...] = ("112x64",),
    stage: str = "5",
    frames: int = 0,
    model: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Writes a finished checkpoint of a stage to a run folder; returns the checkpoint's folder.

    `temporal`: how far its temporal layers are from identity. No weight is zero, so that every input has an effect.
    `frames`: of the clips that it was trained on; 0: not recorded. `model`: what differs from model=tiny;
    `settings`: from conf/stage.
    """
    names = (f"stage/{stage}", "model/tiny")
    recorded, tiny = (yaml.safe_load((conf_dir() / f"{name}.yaml").read_text()) for name in names)
    config = TrainConfig(stage=StageConfig(**{**recorded, **settings}), model=UNetConfig(**{**tiny, **(model or {})}))
    torch.manual_seed(seed)
    weights = SpatioTemporalUNet(stage_unet(config.model, config.stage)).state_dict()
    weights = {k: v + temporal * torch.randn_like(v) if ".temporal_" in k else v for k, v in weights.items()}
    info = CheckpointInfo(stage, 10, True, {"step": 10}, miniature_estimators(), list(buckets), frames=frames)
    return commit(begin(run, 10), {UNET: weights}, config.to_yaml(), info, CheckpointConfig())


def write_prior(run: Path, seed: int = 0) -> Path:
    """Writes a finished checkpoint of a small prior for the miniature's CLIP to a run folder; returns its folder."""
    clip = miniature_estimators()["clip"]
    config = PriorTrainConfig(
        PriorStageConfig("prior", 10),
        prior=PriorConfig(width=32, layers=1, heads=2),
        sampling=PriorSamplingConfig(steps=2),
    )
    torch.manual_seed(seed)
    weights = PriorNetwork(config.prior, clip["width"]).state_dict()
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()}
    info = CheckpointInfo("prior", 10, True, {"step": 10}, {"clip": clip}, weights=PRIOR)
    return commit(begin(run, 10), {PRIOR: weights}, config.to_yaml(), info, CheckpointConfig())


def edit_info(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the content of a checkpoint's checkpoint.json, with the right hashes of all files and of itself."""
    content = json.loads((path / INFO).read_text())
    del content[HASH]
    for name, file in content["files"].items():
        file.update(bytes=(path / name).stat().st_size, sha256=sha256(path / name))
    change(content)
    (path / INFO).write_text(json.dumps({**content, HASH: digest(content)}))
