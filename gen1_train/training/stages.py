"""The five stages (paper section 3.3.1): what each builds on and adds, and where its weights come from."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml

from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.diffusion.structure import LEVEL_CHANNELS
from gen1_train.errors import UserError
from gen1_train.model.pretrained import NEW, WeightReport, check_same_family, load_weights
from gen1_train.model.stable_diffusion import read_stable_diffusion
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import UNET, Checkpoint, find_checkpoint, latest

RESETS = ("optimizer", "ema")  # AdamW's moments, the averages


@dataclass
class StageConfig:
    name: str  # "1" .. "5"
    predecessor: str | None  # the stage whose weights this one starts from; null: from Stable Diffusion
    steps: int  # optimizer steps; 0: the stage only initialises
    temporal: bool  # the UNet has temporal layers
    structure: bool  # the UNet sees the structure, as channels of its input
    max_level: int  # t_s is uniform over 0..max_level
    image_ratio: float  # share of image steps
    new: list[str] = field(default_factory=lambda: list(NEW))  # what it may add to its predecessor's weights
    trains: list[str] = field(default_factory=lambda: ["*"])  # weights that it changes, as globs over their names
    resets: list[str] = field(default_factory=lambda: list(RESETS))  # what begins anew; else the predecessor's goes on


@dataclass
class InitConfig:
    """Where the first weights come from. Without either, a stage takes its predecessor's in the same run tree."""

    from_: str | None = None  # stage 1, `init.from=`: Stable Diffusion, as diffusers' folder, .safetensors or .ckpt
    checkpoint: str | None = None  # other stages: a checkpoint or run folder of the predecessor
    weights: str = (
        "ema"  # which of its weights: ema (its first average, if there is one), raw, or the decay of an average
    )


def stage_unet(model: UNetConfig, stage: StageConfig) -> UNetConfig:
    """The UNet that a stage trains: z_t, from stage 4 on beside encoded structure and t_s."""
    latent = model.out_channels
    in_channels = latent + (latent + LEVEL_CHANNELS if stage.structure else 0)
    return replace(model, in_channels=in_channels, temporal=stage.temporal)


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint's own config says of the model in it."""

    stage: StageConfig
    noise: NoiseConfig
    unet: UNetConfig


def read_recorded(checkpoint: Checkpoint) -> Recorded:
    """Reads a checkpoint's config.yaml. Raises UserError when it is damaged, or of another network than the UNet."""
    if checkpoint.info.weights != UNET:
        raise UserError(
            f"{checkpoint.path} holds no video model, but {checkpoint.info.weights}: give one of a stage 1 to 5"
        )
    try:
        config = yaml.safe_load(checkpoint.config.read_text())
        stage, noise = StageConfig(**config["stage"]), NoiseConfig(**config["diffusion"]["noise"])
        return Recorded(stage, noise, stage_unet(UNetConfig(**config["model"]), stage))
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint.config} cannot be read ({error!r}); use another checkpoint") from error


def run_folder(tree: Path, stage: str) -> Path:
    """RUNS/NAME/stage4; a stage that is no link of the chain has its name alone."""
    return tree / (f"stage{stage}" if stage.isdecimal() else stage)


def build_unet(
    model: UNetConfig, stage: StageConfig, init: InitConfig, tree: Path, seed: int
) -> tuple[SpatioTemporalUNet, WeightReport]:
    """The stage's UNet with the weights that it starts from; raises UserError when they are missing or do not fit."""
    config = stage_unet(model, stage)
    torch.manual_seed(seed)  # new layers come out the same on every rank
    if stage.predecessor is None:
        if init.from_ is None:
            raise UserError(
                f"stage {stage.name} starts from Stable Diffusion: give its folder with init.from=PATH, or its "
                ".safetensors or .ckpt file"
            )
        return _from_stable_diffusion(config, stage, init.from_)
    start = predecessor(stage, init, tree)
    check_same_family(config, read_recorded(start).unet, str(start.path))
    unet = SpatioTemporalUNet(config)
    file = str(start.path / start.weights_file(init.weights))
    return unet, load_weights(unet, start.weights(init.weights), file, stage.new)


def _from_stable_diffusion(
    config: UNetConfig, stage: StageConfig, source: str
) -> tuple[SpatioTemporalUNet, WeightReport]:
    """Stage 1: a UNet of this config with the weights of the Stable Diffusion at `source`."""
    found = read_stable_diffusion(source)
    check_same_family(config, found.config, source, found.untold)
    unet = SpatioTemporalUNet(config)
    report = load_weights(unet, found.weights, source, stage.new, found.origins)
    return unet, replace(report, left_aside=found.left_aside, untold=found.untold)


def predecessor(stage: StageConfig, init: InitConfig, tree: Path) -> Checkpoint:
    """The finished checkpoint that a stage starts from. Raises UserError when there is none."""
    if init.from_ is not None:
        raise UserError(f"init.from is for stage 1; stage {stage.name} starts from a checkpoint: use init.checkpoint=")
    if init.checkpoint is not None:
        found = find_checkpoint(Path(init.checkpoint))
        if found.info.stage != stage.predecessor:
            raise UserError(
                f"{found.path} is of stage {found.info.stage}, but stage {stage.name} starts from stage "
                f"{stage.predecessor}: give one of that stage with init.checkpoint="
            )
        return found
    run = run_folder(tree, str(stage.predecessor))
    checkpoint = latest(run)
    if checkpoint is None or not checkpoint.info.finished:
        state = "has not finished" if checkpoint else "has no checkpoint"
        raise UserError(
            f"stage {stage.name} starts from stage {stage.predecessor}, which {state} in {run}: run "
            f"`gen1-train stage={stage.predecessor}` first, or give init.checkpoint="
        )
    return checkpoint


def inherited(stage: StageConfig, init: InitConfig, tree: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The checkpoint from which a new stage takes more than weights, and which of RESETS it takes from it.

    Raises UserError when it starts from an average and would go on with the moments of other weights.
    """
    keeps = tuple(name for name in RESETS if name not in stage.resets)
    if stage.predecessor is None or not keeps:
        return None, ()
    source = predecessor(stage, init, tree)
    if "optimizer" in keeps and source.weights_file(init.weights) != UNET:
        raise UserError(
            f"stage {stage.name} goes on with the optimizer of {source.path}, so it has to start from the weights that "
            "it was changing: add init.weights=raw, or let stage.resets hold optimizer"
        )
    return source, keeps
