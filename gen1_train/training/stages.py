"""The five stages of the paper: what each one starts from and adds, and where its weights come from."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf

from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.diffusion.structure import AUTO, DEGRADATIONS, LEVEL_CHANNELS, MAX_LEVEL, PIXELS
from gen1_train.errors import UserError, check_choice, check_not_negative, check_share
from gen1_train.model.pretrained import NEW, WeightReport, build_for, check_same_family, load_weights
from gen1_train.model.stable_diffusion import read_stable_diffusion
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.system.records import read_yaml, reason_in
from gen1_train.training.checkpoints.checkpoint import UNET, Checkpoint, Verify, find_checkpoint, latest

Section = TypeVar("Section")

RESETS = ("optimizer", "ema")  # AdamW's moments, the averages


@dataclass
class StageConfig:
    name: str  # "1" .. "5", or customize
    predecessor: str | None  # the stage whose weights this one starts from; null: from Stable Diffusion
    steps: int  # optimizer steps; 0: the stage only initializes
    temporal: bool  # the UNet has temporal layers
    structure: bool  # the UNet sees the structure, as channels of its input
    max_level: int  # t_s is uniform over 0..max_level
    image_ratio: float  # share of image steps
    new: list[str] = field(default_factory=lambda: list(NEW))  # what it may add to its predecessor's weights
    trains: list[str] = field(default_factory=lambda: ["*"])  # weights that it trains, as globs; others are frozen
    resets: list[str] = field(default_factory=lambda: list(RESETS))  # state that starts afresh, not the predecessor's
    degradation: str = AUTO  # what t_s above 0 does: pixels, relative (to the frame), or auto: as in the shard set
    # null: as the checkpoint that the run starts from or resumes, else 0; never all planes of a sample are left out
    drop_planes: float | None = None  # how often each plane of a structure such as depth+edges is left out of a sample

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_share(stage__image_ratio=self.image_ratio)
        check_not_negative(stage__steps=self.steps)
        if not 0 <= self.max_level <= MAX_LEVEL:
            raise UserError(f"stage.max_level={self.max_level} is out of range: give 0 to {MAX_LEVEL}")
        check_choice("stage.degradation", self.degradation, (AUTO, *DEGRADATIONS))
        check_share(stage__drop_planes=self.drop_planes)
        if self.drop_planes and not self.structure:
            raise UserError(f"stage.drop_planes={self.drop_planes}: stage {self.name} sees no structure: leave it out")
        for name, given, known in (("new", self.new, NEW), ("resets", self.resets, RESETS)):
            if unknown := [word for word in given if word not in known]:
                raise UserError(f"stage.{name}={given}: {unknown[0]} is not one of {', '.join(known)}")
        if not self.trains:
            raise UserError("stage.trains=[] would train nothing: give globs over the names of weights, such as [*]")
        if "*" not in self.trains and "ema" not in self.resets:
            raise UserError(
                f"stage.trains={self.trains} freezes weights, whose averages could not move on: add ema to stage.resets"
            )

    @property
    def keeps(self) -> tuple[str, ...]:
        """Which of RESETS continue with the predecessor's."""
        return tuple(name for name in RESETS if name not in self.resets)

    @property
    def highest_level(self) -> int:
        """The highest t_s that a model of this stage has learned; 0 before stage 4, where it sees no structure.

        A stage without steps learns none.
        """
        return self.max_level if self.structure and self.steps else 0


@dataclass
class InitConfig:
    """The source of the first weights. By default, a stage takes those of its predecessor in the same run tree."""

    from_: str | None = None  # stage 1, `init.from=`: Stable Diffusion, as diffusers' folder, .safetensors or .ckpt
    checkpoint: str | None = None  # other stages: a checkpoint or run folder of the predecessor
    weights: str = (
        "ema"  # which of its weights: ema (its first average, if there is one), raw, or the decay of an average
    )


def stage_unet(model: UNetConfig, stage: StageConfig) -> UNetConfig:
    """Returns the UNet of a stage. Its input is z_t, from stage 4 on with the encoded structure and t_s."""
    latent = model.out_channels
    in_channels = latent + (latent + LEVEL_CHANNELS if stage.structure else 0)
    return replace(model, in_channels=in_channels, temporal=stage.temporal)


@dataclass(frozen=True)
class Recorded:
    """The model of a checkpoint, as its own config records it."""

    stage: StageConfig
    noise: NoiseConfig
    unet: UNetConfig
    window: int  # frames that the UNet takes at once in an edit


def read_recorded(checkpoint: Checkpoint) -> Recorded:
    """Reads a checkpoint's config.yaml. Raises UserError if it is damaged, or if the checkpoint holds no UNet.

    The window of edits is as long as the longest clips in training: the frame positions beyond are as random as at the
    start. Older checkpoints do not record the length of their clips; for them it is all positions. Nor do they record
    `stage.degradation`; for them it is in pixels.
    """
    if checkpoint.info.weights != UNET:
        raise UserError(
            f"{checkpoint.path} holds {checkpoint.info.weights}, not a video model: give a checkpoint of a stage 1 to 5"
        )
    try:
        config = read_yaml(checkpoint.config)
        stage = with_degradation(read_section(StageConfig, config["stage"]), PIXELS)
        noise = read_section(NoiseConfig, config["diffusion"]["noise"])
        unet = stage_unet(read_section(UNetConfig, config["model"]), stage)
        return Recorded(stage, noise, unet, min(checkpoint.info.frames or unet.max_frames, unet.max_frames))
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{checkpoint.config} cannot be read ({reason_in(error)}); use another checkpoint") from error


def with_degradation(stage: StageConfig, degradation: str) -> StageConfig:
    """Returns a stage with this way to degrade in place of `auto`."""
    return replace(stage, degradation=degradation) if stage.degradation == AUTO else stage


def load_recorded(checkpoint: Checkpoint, config: UNetConfig, which: str = "ema") -> SpatioTemporalUNet:
    """Returns the UNet of a checkpoint, for inference; `config` is that of `read_recorded`.

    `which`: see `Checkpoint.weights_file`. Raises UserError if the weights do not fit the config.
    """
    weights, source = checkpoint.weights(which), str(checkpoint.path)
    unet = build_for(lambda: SpatioTemporalUNet(config), weights, source)
    load_weights(unet, weights, source, may_be_new=())
    return unet.eval().requires_grad_(False)


def read_section(kind: type[Section], values: Any) -> Section:
    """Builds a section from recorded values. Raises ValueError, see `structured`, or UserError if it cannot be."""
    section: Any = structured(kind, values)
    section.check()
    return section


def structured(kind: type[Section], values: Any) -> Section:
    """Builds a config's dataclass from recorded values, whose types OmegaConf checks. Raises ValueError."""
    if not isinstance(values, dict):  # OmegaConf would parse a text
        raise ValueError("it is not NAME: VALUE lines")
    refuse_resolvers(values)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(values))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except Exception as error:  # OmegaConf raises errors of all kinds for values that it does not expect
        raise ValueError(reason_in(error)) from error


def refuse_resolvers(values: Any) -> None:
    """Raises ValueError for `${…}`: it would read the environment, or call another resolver, because a file said so."""
    if "${" in repr(values):
        raise ValueError("it contains ${…}, which is not resolved in a recorded config")


def run_folder(tree: Path, stage: str) -> Path:
    """Returns the run folder of a stage: OUTPUT/NAME/stage4, or OUTPUT/NAME/customize."""
    return tree / (f"stage{stage}" if stage.isdecimal() else stage)


def build_unet(
    model: UNetConfig, stage: StageConfig, init: InitConfig, start: Checkpoint | None, seed: int
) -> tuple[SpatioTemporalUNet, WeightReport]:
    """Returns the stage's UNet with the weights that it starts from: Stable Diffusion's where `start` is None.

    Raises UserError when they are missing or do not fit.
    """
    config = stage_unet(model, stage)
    torch.manual_seed(seed)  # new layers come out the same on every rank
    if start is None:
        if init.from_ is None:
            raise UserError(
                f"stage {stage.name} starts from Stable Diffusion: give its folder with init.from=PATH, or its "
                ".safetensors or .ckpt file"
            )
        return _from_stable_diffusion(config, stage, init.from_)
    check_same_family(config, read_recorded(start).unet, str(start.path))
    unet = SpatioTemporalUNet(config)
    file = str(start.path / start.weights_file(init.weights))
    report = load_weights(unet, start.weights(init.weights), file, stage.new)
    if report.stretched and stage.keeps:
        raise UserError(
            f"model.max_frames={model.max_frames}, but {start.path} has fewer: its optimizer and averages do not fit "
            f"the stretched positions; use stage.resets=[{','.join(RESETS)}]"
        )
    return unet, report


def _from_stable_diffusion(
    config: UNetConfig, stage: StageConfig, source: str
) -> tuple[SpatioTemporalUNet, WeightReport]:
    """Returns a UNet of this config with the weights of the Stable Diffusion at `source`."""
    found = read_stable_diffusion(source)
    check_same_family(config, found.config, source, found.assumed)
    unet = SpatioTemporalUNet(config)
    report = load_weights(unet, found.weights, source, stage.new, found.origins)
    return unet, replace(report, unused=found.unused, assumed=found.assumed)


def predecessor(stage: StageConfig, init: InitConfig, tree: Path, verify: Verify = Checkpoint.verify) -> Checkpoint:
    """Finds the finished checkpoint that a stage starts from and verifies what the stage takes from it.

    Raises UserError when there is none.
    """
    if init.from_ is not None:
        raise UserError(f"init.from is for stage 1; stage {stage.name} starts from a checkpoint: use init.checkpoint=")
    which = None if stage.keeps else init.weights
    if init.checkpoint is not None:
        checkpoint = find_checkpoint(Path(init.checkpoint), which, verify)
        if checkpoint.info.stage != stage.predecessor:
            raise UserError(
                f"{checkpoint.path} is of stage {checkpoint.info.stage}, but stage {stage.name} starts from stage "
                f"{stage.predecessor}: give one of that stage with init.checkpoint="
            )
        return checkpoint
    run = run_folder(tree, str(stage.predecessor))
    newest = latest(run, which, verify)
    if newest is None or not newest.info.finished:
        state = "has not finished" if newest else "has no checkpoint"
        raise UserError(
            f"stage {stage.name} starts from stage {stage.predecessor}, which {state} in {run}: run "
            f"`gen1-train stage={stage.predecessor}` first, or give init.checkpoint="
        )
    return newest


def inherited(stage: StageConfig, init: InitConfig, start: Checkpoint | None) -> tuple[str, ...]:
    """Returns which of RESETS a new stage takes from the checkpoint that it starts from.

    Raises UserError when it starts from an average and would continue with the moments of other weights.
    """
    if start is None:
        return ()
    if "optimizer" in stage.keeps and start.weights_file(init.weights) != UNET:
        raise UserError(
            f"stage {stage.name} continues with the optimizer of {start.path}, so it has to start from the weights "
            "that this optimizer was changing: add init.weights=raw, or add optimizer to stage.resets"
        )
    return stage.keeps
