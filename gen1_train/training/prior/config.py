"""The config of `gen1-train stage=prior`. Each section is declared next to what it configures, and checks itself."""

from dataclasses import dataclass, field
from pathlib import Path

from gen1_train.data.pairs import PairsConfig
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.errors import UserError, check_not_negative, check_positive, check_share, check_size
from gen1_train.model.prior import PriorConfig
from gen1_train.training.checkpoints.checkpoint import CheckpointConfig
from gen1_train.training.checkpoints.ema import EmaConfig
from gen1_train.training.config import LogConfig, StoredConfig, TrainerConfig
from gen1_train.training.network import OptimConfig
from gen1_train.training.stages import run_folder


@dataclass
class PriorStageConfig:
    name: str  # "prior"
    steps: int  # optimizer steps

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_positive(stage__steps=self.steps)


@dataclass
class PriorDiffusionConfig:
    steps: int = 1000  # T, of a cosine schedule
    drop_text: float = 0.1  # share of pairs that learn without text, for guidance; unCLIP's

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_positive(diffusion__steps=self.steps)
        check_size(diffusion__steps=[self.steps])
        check_share(diffusion__drop_text=self.drop_text)


@dataclass
class PriorValidationConfig:
    every: int = 1000  # optimizer steps between validations on held-out pairs; there is one at the last step; 0: none

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_not_negative(validation__every=self.every)


@dataclass
class PriorOptimConfig(OptimConfig):
    """AdamW with unCLIP's values for its diffusion prior (its appendix C); warm-up and cosine are ours."""

    lr: float = 1.1e-4  # after the warm-up
    schedule: str = "cosine"  # from there down to final_lr_share of it at the last step; or constant
    betas: list[float] = field(default_factory=lambda: [0.9, 0.96])  # of AdamW's moments
    weight_decay: float = 0.06  # of AdamW, on all weights
    warmup_steps: int = 1000  # linear from 0


@dataclass
class PriorTrainConfig(StoredConfig):
    stage: PriorStageConfig  # the number of steps
    name: str = "gen1"  # of the run tree: OUTPUT/NAME/prior
    output: str = "runs"  # folder of the run trees
    seed: int = 0  # of new weights, of the order of the pairs, and of all noise
    prior: PriorConfig = field(default_factory=PriorConfig)  # the network: width, layers, heads
    data: PairsConfig = field(default_factory=PairsConfig)  # the shard set, the batch, and the held-out pairs
    optim: PriorOptimConfig = field(default_factory=PriorOptimConfig)  # AdamW: learning rate, warm-up, decay, clipping
    diffusion: PriorDiffusionConfig = field(default_factory=PriorDiffusionConfig)  # noise, pairs without text
    sampling: PriorSamplingConfig = field(default_factory=PriorSamplingConfig)  # how embeddings are sampled
    ema: EmaConfig = field(default_factory=EmaConfig)  # averages of the weights
    validation: PriorValidationConfig = field(default_factory=PriorValidationConfig)  # of held-out pairs
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # the device and the precision
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # how often, and how many are kept
    log: LogConfig = field(default_factory=LogConfig)  # rows of metrics.csv, W&B, and lines on the terminal
    restart: bool = False  # start at step 0 if all checkpoints are damaged; old files move into RUN/before-restart-1
    check_only: bool = False  # make the checks of a start and do nothing

    def destinations(self) -> list[tuple[str, Path]]:
        """The run folder and the setting that names it; none for a call that only checks."""
        return [] if self.check_only else [("name", run_folder(self.tree, self.stage.name))]

    def check(self) -> None:
        """Raises UserError for an invalid section, and for settings that the prior does not have."""
        self.check_sections()
        self.trainer.check_profile(self.stage.steps)
        if self.sampling.steps > self.diffusion.steps:
            given = f"sampling.steps={self.sampling.steps}"
            raise UserError(f"{given}: there are only diffusion.steps={self.diffusion.steps} to choose from")
        trainer = self.trainer
        if trainer.devices not in (-1, 1) or trainer.nodes != 1:
            raise UserError(
                f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: the prior trains on one process, "
                "which is enough for its size; leave both out"
            )
        if trainer.accumulate != 1:
            raise UserError(f"trainer.accumulate={trainer.accumulate} is for the stages; the prior has data.batch=")
        if trainer.compile:
            raise UserError("trainer.compile=true is for the UNet of the stages; leave it out for the prior")
