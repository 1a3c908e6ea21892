"""What is checked before a device is touched or a file is written; every failure is one line for the user."""

import shutil
from pathlib import Path
from typing import Any

import torch

from gen1_train.config import TrainConfig
from gen1_train.data.cache import fetch_manifest
from gen1_train.data.schedule import Schedule, Settings, stage_seed
from gen1_train.data.shards import Manifest, ShardSet
from gen1_train.data.state import DataState, resume
from gen1_train.errors import UserError
from gen1_train.frozen import check_fingerprint
from gen1_train.model.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.remote import is_url, without_secrets
from gen1_train.training.checkpoint import Checkpoint, checkpoints_dir
from gen1_train.training.prior_config import AnyTrainConfig
from gen1_train.training.stages import predecessor, read_recorded


def open_data(config: TrainConfig) -> ShardSet:
    """The shard set. Raises UserError when there is none, or the model cannot read what it holds."""
    root, cache = config.data.root, config.data.cache
    if root is None:
        raise UserError("data.root is not given: add data.root=FOLDER, a shard set made by gen1-data")
    if cache is not None:
        # a shard that does not come is told before the worker that waits for it is called stalled
        shards = ShardSet(fetch_manifest(root, Path(cache)), patience=0.9 * config.data.stall_seconds)
    elif is_url(root):
        raise UserError(
            f"data.root={without_secrets(root)} is not on this machine: add data.order=blocks and data.cache=FOLDER, "
            "into which coming shards are copied, or copy the set and give its folder"
        )
    else:
        shards = ShardSet(root)
    check_data(config, shards.manifest)
    return shards


def schedule_settings(config: TrainConfig) -> Settings:
    """What of the config decides the order in which the shard set is read."""
    data, stage = config.data, config.stage
    ratio = stage.image_ratio if data.image_ratio is None else data.image_ratio
    seed = stage_seed(config.seed, stage.name)
    frames = config.model.max_frames
    return Settings(seed, ratio, data.batch_clips, frames, data.mix, data.order, data.window, data.lanes)


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


def open_schedule(
    config: TrainConfig, shards: ShardSet, resumed: Checkpoint | None
) -> tuple[Schedule, tuple[str, ...]]:
    """The order in which a run reads the set, from where it stands, and what was changed in it in the run's course.

    Raises UserError where set and config do not fit, or the run cannot go on with them.
    """
    settings = schedule_settings(config)
    if resumed is None:
        return Schedule(shards, settings), ()
    check_estimators(config, shards.manifest, resumed, structure=config.stage.structure)
    return resume(DataState.load(resumed.info.data, str(resumed.path)), shards, settings)


def check_start(config: TrainConfig, manifest: Manifest) -> None:
    """Raises UserError when the checkpoint that the stage starts from knows other estimators than the set's.

    The structure's counts only where both stages see structure. Stage 1 was trained on no set and knows none.
    """
    if config.stage.predecessor is None:
        return
    start = predecessor(config.stage, config.init, config.tree)
    if start.info.estimators:
        seen = config.stage.structure and read_recorded(start).stage.structure
        check_estimators(config, manifest, start, structure=seen)


def check_estimators(config: TrainConfig, manifest: Manifest, start: Checkpoint, structure: bool) -> None:
    """Raises UserError when a checkpoint was trained with other estimators than those that made the set."""
    for name in ("autoencoder", "clip", *(("structure",) if structure else ())):
        before, now = start.info.estimators.get(name, {}), manifest.estimators[name]
        if any(before.get(part) != now.get(part) for part in ("kind", "fingerprint")):
            raise UserError(
                f"the shard set {config.data.root} was made with another {name} estimator than {start.path} was "
                f"trained with: {_described(now)} instead of {_described(before)}; give a set made with the same, or "
                "start from another checkpoint"
            )


def _described(estimator: dict[str, Any]) -> str:
    kind = f"{estimator['kind']} " if "kind" in estimator else ""
    return f"{kind}{estimator.get('config')} (fingerprint {str(estimator.get('fingerprint'))[:12]})"


def open_validation(config: TrainConfig, shards: ShardSet) -> ShardSet | None:
    """Where validation clips come from: a set of their own, or the training set; None if there is no validation.

    Raises UserError when the set of their own was made by other estimators than the training set.
    """
    settings = config.validation
    if not (settings.every or settings.edit_every):
        return None
    if settings.root is None:
        if config.data.cache is None:
            return shards
        print(
            "gen1-train: warning: there is no validation: with data.cache only coming shards are on this machine; add "
            "validation.root=FOLDER, or validation.every=0 validation.edit_every=0",
            flush=True,
        )
        return None
    held_out = ShardSet(settings.root)
    for name, made_by in shards.manifest.estimators.items():
        other = held_out.manifest.estimators.get(name, {})
        if any(other.get(part) != made_by.get(part) for part in ("kind", "fingerprint", "stored")):
            raise UserError(
                f"validation.root={settings.root} was made with another {name} estimator than {config.data.root}: make "
                "it with the same recipe, or leave it out"
            )
    return held_out


def encodes(config: TrainConfig, manifest: Manifest) -> bool:
    """Whether a training step takes the autoencoder: for structure at t_s > 0, and where the shards hold no latents."""
    return config.stage.max_level > 0 or not manifest.estimators["autoencoder"].get("stored", True)


def wants_previews(config: TrainConfig) -> bool:
    """Whether validation clips are to be edited: from the stage on that knows videos."""
    return config.stage.temporal and config.validation.edit_every > 0 and config.validation.edits > 0


def open_autoencoder(config: TrainConfig, manifest: Manifest) -> Autoencoder | None:
    """The autoencoder, where it is needed. Raises UserError when it is not there, or another one."""
    encoding = manifest.estimators["autoencoder"]
    if encodes(config, manifest):
        return load_autoencoder(encoding)
    if not wants_previews(config):
        return None
    try:
        return load_autoencoder(encoding)
    except UserError as error:  # training from latents could go on without it
        raise UserError(f"validation clips cannot be edited: {error}; or set validation.edit_every=0") from error


def load_autoencoder(encoding: dict[str, Any]) -> Autoencoder:
    """The autoencoder that made the set's latents. Raises UserError when the one found there now is another."""
    autoencoder = Autoencoder(AutoencoderConfig(**encoding["config"]))
    check_fingerprint("autoencoder", autoencoder.fingerprint, encoding, "the shard set")
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


def process_count(config: AnyTrainConfig) -> int:
    """Training processes on each node."""
    gpus = gpu_count(config)
    if config.trainer.accelerator == "cuda" and not gpus:
        raise UserError("trainer.accelerator=cuda, but no GPU is seen here: use trainer.accelerator=cpu")
    if gpus and config.trainer.devices > gpus:
        raise UserError(f"trainer.devices={config.trainer.devices}, but {gpus} GPUs are seen here")
    return config.trainer.devices if config.trainer.devices > 0 else max(1, gpus)


def gpu_count(config: AnyTrainConfig) -> int:
    """GPUs of this node that a run may use; 0: it runs on CPUs."""
    return torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 0


def check_disk(folder: Path, needed: int) -> None:
    """Raises UserError when the disk of `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"checkpoints in {folder} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there: make room, lower "
            "checkpoint.keep=, or give a folder on a larger disk with output="
        )


def checkpoint_bytes(weights: int, averages: int = 0) -> int:
    """A checkpoint on disk of so many weights: they, AdamW's two moments and each average, all in float32."""
    return 4 * weights * (3 + averages)


def room_for_checkpoints(run: Path, keep: int, size: int) -> int:
    """Bytes that the checkpoints of a run will take beyond those it has: `keep`, and one that is being written."""
    return size * max(1, keep + 1 - len(list(checkpoints_dir(run).glob("step-*"))))
