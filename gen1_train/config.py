"""The config of `gen1-train`, assembled; each section is declared beside the component that it configures.

Values come from conf/ and the command line: Hydra merges them into these classes and refuses unknown keys and wrong
types before any device is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from torch.distributed.constants import default_pg_timeout

from gen1_train.data.loader import DataConfig
from gen1_train.diffusion.structure import MAX_LEVEL
from gen1_train.errors import UserError
from gen1_train.model.pretrained import NEW
from gen1_train.model.unet import UNetConfig, temporal_heads
from gen1_train.training.checkpoint import CheckpointConfig
from gen1_train.training.ema import EmaConfig, name_of
from gen1_train.training.gpus import PlanConfig
from gen1_train.training.guard import GuardConfig
from gen1_train.training.module import DiffusionConfig
from gen1_train.training.network import OptimConfig
from gen1_train.training.rates import SCHEDULES
from gen1_train.training.stages import RESETS, InitConfig, StageConfig
from gen1_train.training.strategy import StrategyConfig
from gen1_train.training.validation import ValidationConfig


@dataclass
class TrainerConfig:
    accelerator: str = "auto"  # cpu, cuda, or auto: GPUs if there are any
    devices: int = -1  # processes on each node; -1: one for every GPU, or one on a CPU
    nodes: int = 1  # machines
    precision: str = "bf16-mixed"  # or 32-true
    accumulate: int = 1  # micro-batches per optimizer step
    tf32: bool = True  # GPUs: float32 products and convolutions with the 10-bit mantissa of tensor cores
    cudnn_benchmark: bool = True  # GPUs: cuDNN tries its algorithms once for each shape, of which there are few
    compile: bool = False  # the UNet by torch.compile; all shapes before the first step, which may take minutes
    compile_backend: str = "inductor"  # of torch.compile; aot_eager, eager: no compiler needed, and no gain


@dataclass
class LogConfig:
    every: int = 10  # optimizer steps between rows
    wandb: str = "auto"  # auto: online if the user is logged in, else offline; online, offline, disabled
    project: str = "gen1-train"  # of W&B
    wandb_seconds: float = 30.0  # that W&B's server is waited for, at the start and at the end


@dataclass
class TrainConfig:
    stage: StageConfig
    name: str = "gen1"  # of the run tree: OUTPUT/NAME/stageN
    output: str = "runs"  # folder of the run trees
    seed: int = 0  # of new weights, of the order of the data, and of all noise
    model: UNetConfig = field(default_factory=UNetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    check_only: bool = False  # make the checks of a start, on this process alone, and do nothing
    plan_only: bool = False  # print what the run will take (memory, disk, FLOPs, days), and do nothing
    plan: PlanConfig = field(default_factory=PlanConfig)

    @property
    def tree(self) -> Path:
        return Path(self.output) / self.name

    @classmethod
    def from_yaml(cls, text: str) -> "TrainConfig":
        """What `to_yaml` wrote. Raises OmegaConfBaseException or YAMLError when it is no config of this version."""
        made = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(text))
        return OmegaConf.to_object(made)  # type: ignore[return-value]

    def to_yaml(self) -> str:
        """The resolved whole, as it stands in the run folder and in every checkpoint."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


CHOICES = {
    "accelerator": ("auto", "cpu", "cuda"),
    "precision": ("bf16-mixed", "32-true"),
    "wandb": ("auto", "online", "offline", "disabled"),
    "mix": ("exact", "independent"),
    "order": ("global", "blocks"),
    "non_finite": ("skip", "stop"),
    "spike": ("skip", "stop", "allow"),
    "schedule": SCHEDULES,
    "compile_backend": ("inductor", "aot_eager", "eager"),
}


def check(config: TrainConfig) -> None:
    """What the types cannot say. Raises UserError that names the setting and the mend."""
    check_values(config)
    check_waiting(config)
    check_stage(config)
    if config.data.cache is not None and config.data.order != "blocks":
        raise UserError("data.cache needs data.order=blocks: data.order=global reads from all shards at any time")
    if config.trainer.devices == 0 or config.trainer.devices < -1:
        raise UserError(f"trainer.devices={config.trainer.devices}: give a number of processes, or -1 for every GPU")
    check_betas(config.optim.betas)
    check_averages(config.ema.decays)
    check_model(config.model)
    if config.trainer.compile and config.strategy.name == "zero3":
        raise UserError(
            "trainer.compile=true does not go with strategy=zero3, whose hooks fetch the weights of each layer in the "
            "middle of the graph: choose strategy=zero2 or trainer.compile=false"
        )


def check_values(config: TrainConfig) -> None:
    """Settings that are one of a few words, or lie in a range, each by itself."""
    check_choices(config.trainer, config.log, config.data, config.optim, config.guard)
    positive = {
        "data.batch_clips": config.data.batch_clips,
        "data.window": config.data.window,
        "data.lanes": config.data.lanes,
        "data.stall_seconds": config.data.stall_seconds,
        "data.cache_gigabytes": config.data.cache_gigabytes,
        "trainer.accumulate": config.trainer.accumulate,
        "trainer.nodes": config.trainer.nodes,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "guard.sigmas": config.guard.sigmas,
        "guard.window": config.guard.window,
        "guard.in_a_row": config.guard.in_a_row,
        "validation.clips": config.validation.clips,
        "validation.edit_steps": config.validation.edit_steps,
        "log.every": config.log.every,
        "log.wandb_seconds": config.log.wandb_seconds,
        "optim.lr": config.optim.lr,
        "diffusion.noise.steps": config.diffusion.noise.steps,
        "plan.gigabytes": config.plan.gigabytes,
        "plan.tflops": config.plan.tflops,
        "plan.mfu": config.plan.mfu,
    }
    check_positive(positive)
    shares = {
        "data.image_ratio": config.data.image_ratio,
        "stage.image_ratio": config.stage.image_ratio,
        "diffusion.drop_content": config.diffusion.drop_content,
        "optim.final_lr_share": config.optim.final_lr_share,
    }
    check_shares(shares)
    counts = {
        "data.workers": config.data.workers,
        "stage.steps": config.stage.steps,
        "guard.records": config.guard.records,
        "validation.every": config.validation.every,
        "validation.edit_every": config.validation.edit_every,
        "validation.edits": config.validation.edits,
        "checkpoint.keep_hours": config.checkpoint.keep_hours,
        "checkpoint.patience_seconds": config.checkpoint.patience_seconds,
        "optim.warmup_steps": config.optim.warmup_steps,
    }
    check_counts(counts)


def check_choices(*sections: object) -> None:
    """Raises UserError for a setting in one of these that is none of its CHOICES."""
    for section in sections:
        for name, value in vars(section).items():
            if name in CHOICES and value not in CHOICES[name]:
                raise UserError(f"{name}={value} is not one of {', '.join(CHOICES[name])}")


def check_positive(values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"{name}={value} must be above 0")


def check_shares(values: Mapping[str, float | None]) -> None:
    for name, share in values.items():
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{name}={share} is a share: give a number from 0 to 1")


def check_counts(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if value < 0:
            raise UserError(f"{name}={value} must be 0 or above")


def check_betas(betas: Sequence[float]) -> None:
    if len(betas) != 2:
        raise UserError(f"optim.betas={betas}: give two numbers")


def check_averages(decays: Sequence[float]) -> None:
    """Raises UserError for averages that cannot be."""
    if any(not 0 < decay < 1 for decay in decays):
        raise UserError(f"ema.decays={decays}: give numbers between 0 and 1, such as [0.9999], or [] for no average")
    if len({name_of(decay) for decay in decays}) < len(decays):
        raise UserError(f"ema.decays={decays}: two of them are the same to six digits")


def check_waiting(config: TrainConfig) -> None:
    """Raises UserError when one rank may wait for longer than the others wait for it."""
    longest = default_pg_timeout.total_seconds() / 2  # they may have waited for a while before
    waits = {
        "data.stall_seconds": config.data.stall_seconds,
        "checkpoint.patience_seconds": config.checkpoint.patience_seconds,
    }
    for name, value in waits.items():
        if value > longest:
            raise UserError(
                f"{name}={value:g} is too long: after {2 * longest:g} s the other ranks give up by themselves and "
                f"cannot say why; give {longest:g} or less"
            )


def check_stage(config: TrainConfig) -> None:
    """Raises UserError for a stage that cannot be."""
    stage = config.stage
    if not 0 <= stage.max_level <= MAX_LEVEL:
        raise UserError(f"stage.max_level={stage.max_level} is out of range: give 0 to {MAX_LEVEL}")
    for name, given, known in (("new", stage.new, NEW), ("resets", stage.resets, RESETS)):
        if unknown := [word for word in given if word not in known]:
            raise UserError(f"stage.{name}={given}: {unknown[0]} is not one of {', '.join(known)}")
    if not stage.trains:
        raise UserError("stage.trains=[] would train nothing: give globs over the names of weights, such as [*]")


def check_model(model: UNetConfig) -> None:
    """Raises UserError for a UNet that cannot be built."""
    for name in ("attention", "heads"):
        if len(getattr(model, name)) != len(model.channels):
            given = getattr(model, name)
            raise UserError(f"model.{name}={given}: give one for each of model.channels={model.channels}")
    if model.checkpointing and len(model.checkpointing) != len(model.channels):
        raise UserError(
            f"model.checkpointing={model.checkpointing}: give true or false for each of "
            f"model.channels={model.channels}, or []"
        )
    if model.temporal_head_width < 1 or model.temporal_expansion < 1:
        raise UserError("model.temporal_head_width and model.temporal_expansion must be 1 or more")
    if any(width % heads for width, heads in zip(model.channels, model.heads)):
        raise UserError(f"model.heads={model.heads} must divide model.channels={model.channels}")
    if any(width % temporal_heads(width, model) for width in model.channels):
        raise UserError(
            f"model.temporal_head_width={model.temporal_head_width} does not divide model.channels={model.channels} "
            "into equal heads"
        )
    if any(width % model.groups for width in model.channels):
        raise UserError(f"model.groups={model.groups} must divide model.channels={model.channels}")
