"""The config of `gen1-train stage=prior`, assembled; each section is declared beside what it configures."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from gen1_train.config import (
    LogConfig,
    TrainConfig,
    TrainerConfig,
    check_averages,
    check_betas,
    check_choices,
    check_counts,
    check_positive,
    check_shares,
)
from gen1_train.data.pairs import PairsConfig
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.errors import UserError
from gen1_train.model.prior import PriorConfig
from gen1_train.training.checkpoint import CheckpointConfig
from gen1_train.training.ema import EmaConfig
from gen1_train.training.network import OptimConfig


@dataclass
class PriorStageConfig:
    name: str  # "prior"
    steps: int  # optimizer steps


@dataclass
class PriorDiffusionConfig:
    steps: int = 1000  # T, of a cosine schedule
    drop_text: float = 0.1  # share of pairs that learn without text, for guidance; unCLIP's


@dataclass
class PriorValidationConfig:
    every: int = 1000  # optimizer steps between two looks at held-out pairs; the last step always has one; 0: none


@dataclass
class PriorTrainConfig:
    stage: PriorStageConfig
    name: str = "gen1"  # of the run tree: OUTPUT/NAME/prior
    output: str = "runs"  # folder of the run trees
    seed: int = 0  # of new weights, of the order of the pairs, and of all noise
    prior: PriorConfig = field(default_factory=PriorConfig)
    data: PairsConfig = field(default_factory=PairsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    diffusion: PriorDiffusionConfig = field(default_factory=PriorDiffusionConfig)
    sampling: PriorSamplingConfig = field(default_factory=PriorSamplingConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    validation: PriorValidationConfig = field(default_factory=PriorValidationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    check_only: bool = False  # make the checks of a start and do nothing

    @property
    def tree(self) -> Path:
        return Path(self.output) / self.name

    @classmethod
    def from_yaml(cls, text: str) -> "PriorTrainConfig":
        """What `to_yaml` wrote. Raises OmegaConfBaseException or YAMLError when it is no config of this version."""
        made = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(text))
        return OmegaConf.to_object(made)  # type: ignore[return-value]

    def to_yaml(self) -> str:
        """The resolved whole, as it stands in the run folder and in every checkpoint."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


AnyTrainConfig = TrainConfig | PriorTrainConfig  # of a stage, or of the prior


def check_prior(config: PriorTrainConfig) -> None:
    """What the types cannot say. Raises UserError that names the setting and the mend."""
    check_choices(config.trainer, config.log, config.optim)
    check_positive(
        {
            "stage.steps": config.stage.steps,
            "prior.width": config.prior.width,
            "prior.layers": config.prior.layers,
            "prior.heads": config.prior.heads,
            "data.batch": config.data.batch,
            "data.max_pairs": config.data.max_pairs,
            "data.held_out": config.data.held_out,
            "optim.lr": config.optim.lr,
            "diffusion.steps": config.diffusion.steps,
            "checkpoint.every": config.checkpoint.every,
            "checkpoint.keep": config.checkpoint.keep,
            "log.every": config.log.every,
            "log.wandb_seconds": config.log.wandb_seconds,
        }
    )
    check_shares(
        {"diffusion.drop_text": config.diffusion.drop_text, "optim.final_lr_share": config.optim.final_lr_share}
    )
    check_counts(
        {
            "validation.every": config.validation.every,
            "optim.warmup_steps": config.optim.warmup_steps,
            "checkpoint.keep_hours": config.checkpoint.keep_hours,
            "checkpoint.patience_seconds": config.checkpoint.patience_seconds,
        }
    )
    check_betas(config.optim.betas)
    check_averages(config.ema.decays)
    check_sampling(config.sampling, config.diffusion.steps)
    prior = config.prior
    if prior.width % 2 or prior.width % prior.heads:
        raise UserError(f"prior.width={prior.width} must be even and a multiple of prior.heads={prior.heads}")
    check_alone(config.trainer)


def check_sampling(sampling: PriorSamplingConfig, steps: int) -> None:
    """Raises UserError for sampling that cannot be; `steps`: T."""
    check_positive({"sampling.candidates": sampling.candidates, "sampling.steps": sampling.steps})
    check_counts({"sampling.omega": sampling.omega})
    if sampling.steps > steps:
        raise UserError(f"sampling.steps={sampling.steps}: there are only diffusion.steps={steps} to choose from")


def check_alone(trainer: TrainerConfig) -> None:
    """Raises UserError where more is asked for than the one process that the prior needs."""
    if trainer.devices not in (-1, 1) or trainer.nodes != 1:
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: the prior trains on one process, which "
            "is enough for its size; leave both out"
        )
    if trainer.accumulate != 1:
        raise UserError(f"trainer.accumulate={trainer.accumulate} is for the stages; the prior has data.batch=")
    if trainer.compile:
        raise UserError("trainer.compile=true is for the UNet of the stages; leave it out for the prior")
