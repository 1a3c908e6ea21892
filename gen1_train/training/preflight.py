"""Checks before a device is touched or a file is written; every failure is one line for the user."""

import atexit
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

from gen1_train.data.cache import fetch_manifest
from gen1_train.data.manifest import Manifest
from gen1_train.data.merged import MergedShards
from gen1_train.data.schedule import Schedule, Settings, check_batch, stage_seed
from gen1_train.data.shards import ShardSet
from gen1_train.data.state import AUTO, DataState, resume
from gen1_train.diffusion.planes import JOIN, kinds_of
from gen1_train.diffusion.structure import PIXELS
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.frozen.levels import set_degradation, stored_level
from gen1_train.frozen.networks import recorded_autoencoder
from gen1_train.system.remote import is_url, without_secrets
from gen1_train.training.checkpoints.checkpoint import Checkpoint, checkpoints_dir
from gen1_train.training.config import RunConfig, TrainConfig
from gen1_train.training.customization.customize import prepare_subject
from gen1_train.training.customization.subject import HELD_OUT
from gen1_train.training.stages import read_recorded, run_folder

logger = logging.getLogger(__name__)


def open_data(config: TrainConfig, start: Checkpoint | None = None) -> ShardSet:
    """Opens the shard set. `start`: for a customization, the checkpoint that the run starts from or resumes.

    Raises UserError when there is none, or when the model cannot read it.
    """
    root, cache = config.data.root, config.data.cache
    if config.images is not None:
        assert start is not None
        return open_subject(config, start)
    if root is None:
        raise UserError("data.root is not given: add data.root=FOLDER, a shard set made by gen1-data")
    if cache is not None:
        # a missing shard is reported before the worker that waits for it counts as stalled
        shards = ShardSet(fetch_manifest(root, Path(cache)), patience=0.9 * config.data.stall_seconds)
    elif is_url(root):
        raise UserError(
            f"data.root={without_secrets(root)} is not on this machine: add data.cache=FOLDER, into which coming "
            "shards are copied, or copy the set and give its folder"
        )
    else:
        shards = ShardSet(root)
    check_data(config, shards.manifest)
    return shards


def open_subject(config: TrainConfig, start: Checkpoint) -> MergedShards:
    """Opens the subject's images, which are encoded first if need be, with the clips of data.root, if it is given.

    Raises UserError as open_data does, and when data.root was made by other networks than those of `start`.
    """
    assert config.images is not None
    root = config.data.root
    encoding: dict[str, Any] = {}  # of its set
    if root is None:
        logger.warning(
            "without data.root= all steps read the images: nothing guards against forgetting; give the set that the "
            "model was trained on"
        )
    elif is_url(root):
        raise UserError(f"data.root={without_secrets(root)} is not on this machine: copy the set and give its folder")
    else:
        prior = ShardSet(root).manifest
        check_data(config, prior)
        check_estimators(config, prior, start, structure=True)
        encoding = prior.estimators["autoencoder"]
    subject = prepare_subject(
        folder=Path(config.images),
        run=_folder_without_traces() if config.check_only else run_folder(config.tree, config.stage.name),
        start=start,
        config=config.customize,
        degradation=choose_degradation(config, encoding, start),
        accelerator=config.trainer.accelerator,
        writes=getattr(rank_zero_only, "rank", 0) == 0,
        patience=config.data.stall_seconds,
    )
    shards = MergedShards(subject.train, root)
    check_data(config, shards.manifest)
    return shards


def _folder_without_traces() -> Path:
    """A folder that is removed when the process ends, for check_only=true."""
    folder = tempfile.TemporaryDirectory(prefix="gen1-check-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def schedule_settings(config: TrainConfig) -> Settings:
    """Returns the settings that decide the order in which the shard set is read. For `auto`, see `choose_order`."""
    data, stage = config.data, config.stage
    ratio = stage.image_ratio if data.image_ratio is None else data.image_ratio
    if config.images is not None and data.root is None:
        ratio = 1.0  # there is nothing else to read
    return Settings(
        seed=stage_seed(config.seed, stage.name),
        image_ratio=ratio,
        clips=data.batch_clips,
        frames=config.model.max_frames,
        mix=data.mix,
        order="global" if data.order == AUTO else data.order,
        window=data.window,
        lanes=data.lanes,
    )


def check_data(config: TrainConfig, manifest: Manifest) -> None:
    """Raises UserError if the model cannot read the set."""
    width = manifest.estimators["clip"]["width"]
    if width != config.model.content_dim:
        raise UserError(
            f"the CLIP embeddings in {config.data.root} have width {width}, the model takes "
            f"{config.model.content_dim}: choose another model=, or a set of another recipe.clip.model, or set "
            f"model.content_dim={width} from stage 1 on"
        )
    channels = manifest.estimators["autoencoder"].get("channels", config.model.out_channels)
    if channels != config.model.out_channels:
        raise UserError(
            f"the latents in {config.data.root} have {channels} channels, the model takes {config.model.out_channels}: "
            f"choose another recipe.autoencoder.path=, or another model= with out_channels={channels}"
        )
    frames = [pool.frames for pool in manifest.pools.values()]
    if config.stage.temporal and max(frames) > config.model.max_frames:
        raise UserError(
            f"clips in {config.data.root} have {max(frames)} frames, the model has positions for "
            f"{config.model.max_frames}: set model.max_frames={max(frames)} from stage 3 on"
        )
    if manifest.lengths and schedule_settings(config).image_ratio < 1:
        parts = wanted_processes(config) * config.trainer.nodes * config.trainer.accumulate
        check_batch(config.data.batch_clips, manifest.lengths, parts)


def open_schedule(
    config: TrainConfig, shards: ShardSet, resumed: Checkpoint | None
) -> tuple[Schedule, tuple[str, ...]]:
    """Returns the order in which a run reads the set from its current step on, and the changes made during the run.

    Raises UserError if set and config do not fit, or if the run cannot resume with them.
    """
    settings = schedule_settings(config)
    if resumed is None:
        return Schedule(shards, settings), ()
    check_estimators(config, shards.manifest, resumed, structure=config.stage.structure)
    return resume(DataState.load(resumed.info.data, str(resumed.path)), shards, settings)


def log_short_clips(config: TrainConfig, schedule: Schedule) -> None:
    """Logs that clips are shorter than the model could take, because edits then use shorter windows."""
    frames = max((pool.frames for pool in schedule.pools if pool.kind == "video"), default=0)
    if config.stage.temporal and 0 < frames < config.model.max_frames:
        most = "up to " if len(schedule.lengths) > 1 else ""
        logger.info(
            f"clips have {most}{frames} frames and the model has positions for {config.model.max_frames}: edits will "
            f"take {frames} frames at once"
        )


def check_start(config: TrainConfig, manifest: Manifest, start: Checkpoint) -> None:
    """Raises UserError when the checkpoint that the stage starts from was trained with other estimators than the set's.

    The structure estimator counts only where both stages see structure. Stage 1 was trained on no set and has none.
    """
    if start.info.estimators:
        seen = config.stage.structure and read_recorded(start).stage.structure
        check_estimators(config, manifest, start, structure=seen)


def check_estimators(config: TrainConfig, manifest: Manifest, start: Checkpoint, structure: bool) -> None:
    """Raises UserError if a checkpoint was trained with other estimators than those that made the set."""
    for name in ("autoencoder", "clip", *(("structure",) if structure else ())):
        before, now = start.info.estimators.get(name, {}), manifest.estimators[name]
        if any(before.get(part) != now.get(part) for part in ("kind", "fingerprint")):
            raise UserError(
                f"the shard set {config.data.root} was made with another {name} estimator than {start.path} was "
                f"trained with: {_described(now)} instead of {_described(before)}; give a set made with the same, or "
                "start from another checkpoint"
            )


def choose_degradation(config: TrainConfig, autoencoder: Mapping[str, Any], start: Checkpoint | None) -> str:
    """Returns what t_s above 0 does in a run, see diffusion.structure.DEGRADATIONS.

    It is that of the latents that the set holds (`autoencoder`: the set's entry), or else what the checkpoint has
    learned that the run starts from or resumes, or else what the set records. Raises UserError if they disagree.
    """
    stage, recorded = config.stage, set_degradation(autoencoder)
    stored = recorded if stored_level(autoencoder) else None
    before = read_recorded(start).stage if start is not None else None
    learned = before.degradation if before is not None and before.highest_level else None
    given = stage.degradation if stage.degradation != AUTO else None
    chosen = given or stored or learned or recorded or PIXELS
    if not stage.highest_level:
        return chosen
    held = f"{config.data.root} holds the latents of recipe.degradation={stored}"
    refresh = "make another set by gen1-data refresh layer=latents recipe.degradation="
    if start is not None and learned not in (None, chosen):
        cause, remedy = f"stage.degradation={chosen}", "leave it out"
        if stored == chosen:
            cause, remedy = held, f"{refresh}{learned}"
        raise UserError(f"{cause}, but {start.path} was trained with stage.degradation={learned}: {remedy}")
    if stored not in (None, chosen):
        raise UserError(f"stage.degradation={chosen}, but {held}: leave it out, or {refresh}{chosen}")
    return chosen


def choose_drop_planes(config: TrainConfig, manifest: Manifest, start: Checkpoint | None) -> float:
    """Returns the probability with which a plane of the structure is left out in a run.

    It is what is given, or else that of the checkpoint that the run starts from or resumes. Raises UserError if the
    structure has only one plane.
    """
    given, kind = config.stage.drop_planes, str(manifest.estimators["structure"]["kind"])
    if not config.stage.structure or len(kinds_of(kind)) == 1:
        if given:
            raise UserError(
                f"stage.drop_planes={given}, but the structure of {config.data.root} is {kind} alone: leave it out, or "
                f"make a set of several kinds, as by gen1-data refresh layer={kind}{JOIN}"
                f"{'edges' if kind != 'edges' else 'depth'}"
            )
        return 0.0
    if given is None:
        return (read_recorded(start).stage.drop_planes if start is not None else None) or 0.0
    return given


def with_chosen(config: TrainConfig, manifest: Manifest, start: Checkpoint | None) -> TrainConfig:
    """Returns the config with what its stage leaves to the set and to `start`, the checkpoint that the run starts from
    or resumes. Raises UserError if they disagree.
    """
    degradation = choose_degradation(config, manifest.estimators["autoencoder"], start)
    drop_planes = choose_drop_planes(config, manifest, start)
    return replace(config, stage=replace(config.stage, degradation=degradation, drop_planes=drop_planes))


def warn_of_new_levels(config: TrainConfig, start: Checkpoint) -> None:
    """Warns if a customization, which is short, draws levels of structure that its model has not learned yet."""
    learned = read_recorded(start).stage.highest_level
    if config.images is not None and config.stage.highest_level > learned:
        logger.warning(
            f"stage.max_level={config.stage.max_level}, but {start.path} has learned t_s up to {learned}: these few "
            f"steps have to teach it the others; stage.max_level={learned} keeps to those"
        )


def _described(estimator: dict[str, Any]) -> str:
    kind = f"{estimator['kind']} " if "kind" in estimator else ""
    return f"{kind}{estimator.get('config')} (fingerprint {str(estimator.get('fingerprint'))[:12]})"


def open_validation(config: TrainConfig, shards: ShardSet) -> ShardSet | None:
    """Opens the set of the validation clips: their own, or the training set. Returns None if there is no validation.

    Raises UserError if their own set was made by other estimators than the training set.
    """
    settings = config.validation
    if not (settings.every or settings.edit_every):
        return None
    if settings.root is None:
        if config.images is not None and config.data.root is None:
            return None
        if config.data.cache is None:
            return shards
        logger.warning(
            "there is no validation: with data.cache, only coming shards are on this machine; add "
            "validation.root=FOLDER, or validation.every=0 validation.edit_every=0"
        )
        return None
    held_out = ShardSet(settings.root)
    for name in ("autoencoder", "clip", "structure"):  # nothing is trained on captions here
        made_by, other = shards.manifest.estimators[name], held_out.manifest.estimators[name]
        if any(other.get(part) != made_by.get(part) for part in ("kind", "fingerprint", "stored")):
            raise UserError(
                f"validation.root={settings.root} was made with another {name} estimator than {config.data.root}: make "
                "it with the same recipe, or leave it out"
            )
    if missing_latents(config, held_out.manifest) and not missing_latents(config, shards.manifest):
        raise UserError(
            f"validation.root={settings.root} lacks latents of the structure at t_s up to {config.stage.max_level} "
            f"({config.stage.degradation}), which {config.data.root} has: make a set with them by gen1-data refresh "
            "layer=latents, or leave it out"
        )
    return held_out


def open_held_out(config: TrainConfig, shards: ShardSet) -> ShardSet | None:
    """Opens the images of a subject that are not trained on. Returns None if there are none, or no validation."""
    if not isinstance(shards, MergedShards) or not config.validation.every:
        return None
    folder = shards.images.root.with_name(HELD_OUT)
    if folder.exists():
        return ShardSet(folder)
    logger.warning(
        "no image is held out (there are too few for customize.held_out), so nothing shows whether the images are "
        "learned by heart"
    )
    return None


def encodes(config: TrainConfig, manifest: Manifest) -> bool:
    """Whether a training step needs the autoencoder: the shards hold no latents, or none at a t_s that is drawn, or
    planes of the structure are left out.
    """
    return encoded_maps(config, manifest) > 0


def encoded_maps(config: TrainConfig, manifest: Manifest) -> float:
    """Returns how many maps of a frame a training step encodes, on average over the samples."""
    missing, drops = missing_latents(config, manifest), config.stage.drop_planes or 0.0
    if not drops or missing == 2 or (missing and manifest.estimators["autoencoder"].get("stored", True)):
        return missing
    return missing + 1 - (1 - drops) ** len(kinds_of(manifest.estimators["structure"]["kind"]))


def missing_latents(config: TrainConfig, manifest: Manifest) -> int:
    """Returns of how many maps of a frame the shards lack the latents: the frame, its structure, or both."""
    autoencoder = manifest.estimators["autoencoder"]
    frames = not autoencoder.get("stored", True)
    stored = stored_level(autoencoder, config.stage.degradation)
    structure = config.stage.structure and (frames or config.stage.max_level > stored)
    return frames + structure


def wants_previews(config: TrainConfig) -> bool:
    """Whether validation clips are edited; stages without temporal layers cannot do it."""
    return config.stage.temporal and config.validation.edit_every > 0 and config.validation.edits > 0


def open_autoencoder(config: TrainConfig, manifest: Manifest) -> Autoencoder | None:
    """Loads the autoencoder if it is needed. Raises UserError if it is missing or has changed."""
    encoding = manifest.estimators["autoencoder"]
    if encodes(config, manifest):
        return load_autoencoder(encoding)
    if not wants_previews(config):
        return None
    try:
        return load_autoencoder(encoding)
    except UserError as error:  # training from latents would work without it
        raise UserError(f"validation clips cannot be edited: {error}; or set validation.edit_every=0") from error


def load_autoencoder(encoding: dict[str, Any]) -> Autoencoder:
    """Loads the autoencoder that made the set's latents. Raises UserError if its weights have changed."""
    return recorded_autoencoder(encoding, "the shard set", "the shard set")


def micro_clips(config: TrainConfig, world: int) -> int:
    """Returns the clips per micro-batch and rank. Raises UserError if the global batch cannot be split evenly."""
    parts = world * config.trainer.accumulate
    clips, rest = divmod(config.data.batch_clips, parts)
    if rest:
        raise UserError(
            f"data.batch_clips={config.data.batch_clips} cannot be split evenly over {world} processes x "
            f"{config.trainer.accumulate} accumulated micro-batches: make it a multiple of {parts}"
        )
    return clips


def process_count(config: RunConfig) -> int:
    """Returns the number of training processes on each node. Raises UserError if the GPUs for them are missing."""
    gpus = gpu_count(config)
    if config.trainer.accelerator == "cuda" and not gpus:
        raise UserError("trainer.accelerator=cuda, but there is no GPU here: use trainer.accelerator=cpu")
    if gpus and config.trainer.devices > gpus:
        raise UserError(f"trainer.devices={config.trainer.devices}, but this machine has {gpus} GPUs")
    return wanted_processes(config)


def wanted_processes(config: RunConfig) -> int:
    """Returns the number of training processes that a config asks for on each node, whether or not it has the GPUs."""
    return config.trainer.devices if config.trainer.devices > 0 else max(1, gpu_count(config))


def gpu_count(config: RunConfig) -> int:
    """Returns the number of GPUs of this node that a run may use; 0 if it runs on CPUs."""
    return torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 0


def check_disk(folder: Path, needed: int) -> None:
    """Raises UserError if the disk of `folder`, which need not exist yet, has less than `needed` bytes free."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free < needed:
        raise UserError(
            f"checkpoints in {folder} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there: make room, lower "
            "checkpoint.keep=, or give a folder on a larger disk with output="
        )


def nearest_folder(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def checkpoint_bytes(weights: int, trained: int, averages: int = 0, adapted: bool = False) -> int:
    """Returns the size on disk of a checkpoint: weights, AdamW's two moments and the averages, all in float32.

    `weights`, `trained`: the numbers of all weights and of those that are trained, which alone have moments. With an
    adapter, which is what is trained, each file of weights has a file of the adapter next to it.
    """
    adapters = trained * (1 + averages) if adapted else 0
    return 4 * (weights * (1 + averages) + 2 * trained + adapters)


def room_for_checkpoints(run: Path, keep: int, size: int) -> int:
    """Returns the bytes that a run's checkpoints will add: there are `keep` of them, and one that is being written."""
    return size * max(1, keep + 1 - len(list(checkpoints_dir(run).glob("step-*"))))
