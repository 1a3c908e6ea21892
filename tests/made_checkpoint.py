"""A stage 5 checkpoint without training: a tiny UNet with random weights, and the miniature's estimators."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from gen1_train.cli import conf_dir
from gen1_train.config import TrainConfig
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.estimators.clip import ClipConfig, ClipEncoder
from gen1_train.estimators.depth import DepthConfig, DepthEstimator
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.model.prior import PriorConfig, PriorNetwork
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import PRIOR, UNET, CheckpointConfig, CheckpointInfo, begin, commit
from gen1_train.training.prior_config import PriorStageConfig, PriorTrainConfig
from gen1_train.training.stages import StageConfig, stage_unet

WEIGHTS = Path(__file__).parents[1] / "miniature" / "weights"


@cache
def miniature_estimators() -> dict[str, Any]:
    """What the manifest of a set of recipe=tiny says of its estimators."""
    autoencoder = Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))
    depth, clip = DepthConfig(str(WEIGHTS / "depth"), 64, 16), ClipConfig(f"local-dir:{WEIGHTS / 'clip'}", None)
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
    run: Path, seed: int = 0, temporal: float = 0.05, buckets: tuple[str, ...] = ("112x64",), stage: str = "5"
) -> Path:
    """A finished checkpoint of a stage in the run folder; `temporal`: how far its temporal layers are from identity.

    No weight is zero, so every input counts. Returns the checkpoint's own folder.
    """
    names = (f"stage/{stage}", "model/tiny")
    recorded, model = (yaml.safe_load((conf_dir() / f"{name}.yaml").read_text()) for name in names)
    config = TrainConfig(stage=StageConfig(**recorded), model=UNetConfig(**model))
    torch.manual_seed(seed)
    weights = SpatioTemporalUNet(stage_unet(config.model, config.stage)).state_dict()
    weights = {k: v + temporal * torch.randn_like(v) if ".temporal_" in k else v for k, v in weights.items()}
    info = CheckpointInfo(stage, 10, True, {"step": 10}, miniature_estimators(), list(buckets))
    return commit(begin(run, 10), {UNET: weights}, config.to_yaml(), info, CheckpointConfig())


def write_prior(run: Path, seed: int = 0) -> Path:
    """A finished checkpoint of a small prior with random weights, for the miniature's CLIP, in the run folder."""
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
