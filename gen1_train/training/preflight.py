"""What is checked before a device is touched or a file is written; every failure is one line for the user."""

from typing import Any

import torch

from gen1_train.config import TrainConfig
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import Manifest, ShardSet
from gen1_train.errors import UserError
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig


def open_data(config: TrainConfig) -> tuple[ShardSet, Schedule]:
    """The shard set and the schedule over it. Raises UserError when they do not fit the config."""
    if config.data.root is None:
        raise UserError("data.root is not given: add data.root=FOLDER, a shard set made by gen1-data")
    shards = ShardSet(config.data.root)
    ratio = config.stage.image_ratio if config.data.image_ratio is None else config.data.image_ratio
    schedule = Schedule(shards, config.seed, ratio, config.data.batch_clips, config.model.max_frames)
    check_data(config, shards.manifest)
    return shards, schedule


def check_data(config: TrainConfig, manifest: Manifest) -> None:
    """Raises UserError when the model cannot read what the set holds."""
    width = manifest.estimators["clip"]["width"]
    if width != config.model.content_dim:
        raise UserError(
            f"the CLIP embeddings in {config.data.root} have width {width}, the model takes "
            f"{config.model.content_dim}: choose another model=, or set model.content_dim={width}"
        )
    frames = [pool.frames for pool in manifest.pools.values()]
    if config.stage.temporal and max(frames) > config.model.max_frames:
        raise UserError(
            f"clips in {config.data.root} have {max(frames)} frames, the model has positions for "
            f"{config.model.max_frames}: set model.max_frames={max(frames)} from stage 3 on"
        )


def load_autoencoder(encoding: dict[str, Any]) -> Autoencoder:
    """The autoencoder that made the set's latents. Raises UserError when the one found there now is another."""
    autoencoder = Autoencoder(AutoencoderConfig(**encoding["config"]))
    if autoencoder.fingerprint != encoding["fingerprint"]:
        raise UserError(
            f"the autoencoder at {encoding['config']} is not the one that encoded the shard set (its fingerprint "
            "differs): restore it, or make the set again with gen1-data"
        )
    return autoencoder


def micro_clips(config: TrainConfig, world: int) -> int:
    """Clips in one micro-batch of one rank. Raises UserError when the global batch cannot be split evenly."""
    parts = world * config.trainer.accumulate
    clips, rest = divmod(config.data.batch_clips, parts)
    if rest:
        raise UserError(
            f"data.batch_clips={config.data.batch_clips} cannot be split evenly over {world} processes x "
            f"{config.trainer.accumulate} accumulated micro-batches: make it a multiple of {parts}"
        )
    return clips


def process_count(config: TrainConfig) -> int:
    """Training processes on each node."""
    gpus = torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 0
    if config.trainer.accelerator == "cuda" and not gpus:
        raise UserError("trainer.accelerator=cuda, but no GPU is seen here: use trainer.accelerator=cpu")
    if not gpus and config.trainer.precision == "bf16-mixed" and config.strategy.name in ("single", "ddp"):
        raise UserError(  # gradients were NaN in some runs: one cause is mended (Downsample), others are not ruled out
            "trainer.precision=bf16-mixed with strategy=single or ddp needs a GPU: use trainer.precision=32-true here"
        )
    if gpus and config.trainer.devices > gpus:
        raise UserError(f"trainer.devices={config.trainer.devices}, but {gpus} GPUs are seen here")
    return config.trainer.devices if config.trainer.devices > 0 else max(1, gpus)
