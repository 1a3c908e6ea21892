"""The weights that a start of a stage begins with, and the module around them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gen1_train.data.manifest import Manifest
from gen1_train.diffusion.planes import kinds_of
from gen1_train.diffusion.structure import PIXELS
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.frozen.levels import stored_level
from gen1_train.model.pretrained import WeightReport, check_keys, check_same_family
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.checkpoints.state import MOMENTS, moments_of, saved, trainable
from gen1_train.training.config import TrainConfig
from gen1_train.training.customization.lora import (
    add_lora,
    check_adapter,
    describe_adapter,
    load_base,
    load_trained,
    save_base,
)
from gen1_train.training.module import Gen1Module, StageSpec, freeze
from gen1_train.training.preflight import encodes
from gen1_train.training.ready import Ready
from gen1_train.training.session import is_rank_zero
from gen1_train.training.stages import build_unet, read_recorded, stage_unet, with_degradation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """A UNet that is ready to train, and where its weights came from."""

    unet: SpatioTemporalUNet
    report: WeightReport | None = None  # of a new run; a resumed one has it in its run folder
    adapter: dict[str, Any] = field(default_factory=dict)  # what checkpoints record of a LoRA adapter


def load_initial(config: TrainConfig, ready: Ready) -> InitialWeights:
    """Loads the weights of a new or a resumed run. Raises UserError where they do not fit."""
    if ready.resume is not None:
        return InitialWeights(restore(config, ready.run, ready.resume), adapter=ready.resume.info.lora)
    unet, report = build_unet(config.model, config.stage, config.init, ready.predecessor, config.seed)
    return InitialWeights(unet, report, begin_adapter(config, ready.run, unet))


def begin_adapter(config: TrainConfig, run: Path, unet: SpatioTemporalUNet) -> dict[str, Any]:
    """Puts an adapter into the UNet if one is to be trained; returns what checkpoints record of it."""
    if config.customize.lora_rank is None:
        return {}
    if is_rank_zero():
        save_base(run, unet.state_dict())
    add_lora(unet, config.customize, config.seed)
    count = sum(weight.numel() for weight in trainable(unet).values())
    total = sum(weight.numel() for weight in unet.parameters())
    logger.info(f"LoRA of rank {config.customize.lora_rank} trains {count:,} weights, {count / total:.2%} of all")
    return describe_adapter(config.customize, run) if is_rank_zero() else {}


def restore(config: TrainConfig, run: Path, resume: checkpoint.Checkpoint) -> SpatioTemporalUNet:
    """Returns the UNet of a run that resumes. Raises UserError for a checkpoint of another model."""
    unet = SpatioTemporalUNet(stage_unet(config.model, config.stage))
    recorded = read_recorded(resume)
    check_same_family(unet.config, recorded.unet, str(resume.path))
    check_adapter(config.customize, run, resume)
    if config.customize.lora_rank is not None:
        load_base(unet, run, config.customize, config.seed)
    load_trained(unet, resume.trained(), str(resume.path))
    check_moments(unet, config.stage.trains, recorded.stage.trains, resume)
    logger.info(f"resuming from {resume.path}")
    return unet


def check_moments(
    unet: SpatioTemporalUNet, trains: list[str], trained: list[str], resume: checkpoint.Checkpoint
) -> None:
    """Freezes weights as `stage.trains` says, and checks that a run can resume with the moments of the others.

    Raises UserError if it has trained other weights so far (`trained`), or lacks moments.
    """
    before, now = (frozen(unet, globs) for globs in (trained, trains))
    if before != now:
        raise UserError(
            f"stage.trains={trains} cannot change within a run: {resume.path} was trained with {trained}; give them, "
            "or start another run with name="
        )
    moments = resume.moments()
    older = {f"{name}.{moment}" for name in now for moment in MOMENTS}  # versions before kept them for frozen weights
    found = {name: moments[name] for name in moments if name not in older} if now else moments
    wanted = {name: weight for name, (weight, _) in moments_of(unet).items()}
    check_keys(wanted, found, str(resume.path / checkpoint.OPTIMIZER))


def frozen(unet: SpatioTemporalUNet, trains: list[str]) -> set[str]:
    """Freezes as stage.trains says, and returns the names of the frozen weights."""
    freeze(unet, trains)
    return {name for name, weight in saved(unet).items() if not weight.requires_grad}


def make_module(
    config: TrainConfig,
    unet: SpatioTemporalUNet,
    manifest: Manifest,
    autoencoder: Autoencoder | None,
    seed: int,
    start: int,
) -> Gen1Module:
    """Returns the module around a UNet. `seed`: of the stage's noise; `start`: optimizer steps done."""
    stage = with_degradation(config.stage, PIXELS)  # in records of older versions
    encoding = manifest.estimators["autoencoder"]
    spec = StageSpec(
        seed=seed,
        latent_scale=encoding["scale"],
        structure=stage.structure,
        max_level=stage.max_level,
        degradation=stage.degradation,
        planes=len(kinds_of(manifest.estimators["structure"]["kind"])),
        drop_planes=stage.drop_planes or 0.0,
        cached=encoding.get("stored", True),
        stored_level=stored_level(encoding, stage.degradation),
        trains=stage.trains,
        start=start,
        steps=stage.steps,
    )
    needed = autoencoder if encodes(config, manifest) else None
    return Gen1Module(unet, config.optim, config.diffusion, spec, needed)
