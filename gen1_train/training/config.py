"""The config of `gen1-train`. Each section is declared next to the component that it configures, and checks itself.

Values come from conf/ and the command line. Hydra merges them into these classes, and refuses unknown keys and wrong
types before any device is touched.
"""

from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import yaml
from typing_extensions import override

from gen1_train.data.loader import DataConfig
from gen1_train.errors import UserError, check_choice, check_not_negative, check_positive
from gen1_train.formats.plain_yaml import parse_yaml
from gen1_train.model.unet import UNetConfig
from gen1_train.system.console import ConsoleConfig
from gen1_train.system.records import read_yaml
from gen1_train.system.remote import without_secrets
from gen1_train.training.callbacks.guard import GuardConfig
from gen1_train.training.callbacks.validation import ValidationConfig
from gen1_train.training.checkpoints.checkpoint import CheckpointConfig
from gen1_train.training.checkpoints.ema import EmaConfig
from gen1_train.training.customization.customize import NAME, CustomizeConfig
from gen1_train.training.failures.health import HEALTH
from gen1_train.training.module import DiffusionConfig
from gen1_train.training.network import ADAMW8BIT, OptimConfig
from gen1_train.training.planning.gpus import PlanConfig
from gen1_train.training.stages import RESETS, InitConfig, StageConfig, run_folder, structured
from gen1_train.training.strategies.config import AUTO, COLLECTIVE_SECONDS, FSDP, StrategyConfig


@dataclass
class TrainerConfig:
    accelerator: str = "auto"  # cpu, cuda, or auto: GPUs if there are any
    devices: int = -1  # processes on each node; -1: one for every GPU, or one on a CPU
    nodes: int = 1  # machines
    rendezvous_seconds: float = 900.0  # how long a rank waits at the start until all others have met it
    collective_seconds: float = (
        COLLECTIVE_SECONDS  # how long a rank waits for the others in a collective, before it gives up
    )
    step_deadline: float = 10.0  # times the median step: the run ends when a step takes longer; 0: never
    step_deadline_seconds: float = 300.0  # the least time that a step may take, whatever the median is
    health: str = "warn"  # of GPUs, compared before the first step: warn of slow ranks, stop, or off
    precision: str = "bf16-mixed"  # or 32-true
    accumulate: int = 1  # micro-batches per optimizer step
    tf32: bool = True  # GPUs: float32 products and convolutions with the 10-bit mantissa of tensor cores
    cudnn_benchmark: bool = True  # GPUs: cuDNN times its algorithms once for each of the few shapes
    deterministic: bool = False  # only deterministic algorithms, and no cudnn_benchmark: equal runs have equal bits
    compile: bool = False  # compiles the UNet for all shapes before the first step, which may take minutes
    compile_backend: str = "inductor"  # of torch.compile; aot_eager, eager: no compiler needed, and no gain
    profile: int | None = None  # the optimizer step to trace into RUN/profile, on rank 0; null or 0: none

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_choice("trainer.accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        check_choice("trainer.health", self.health, HEALTH)
        check_choice("trainer.precision", self.precision, ("bf16-mixed", "32-true"))
        check_choice("trainer.compile_backend", self.compile_backend, ("inductor", "aot_eager", "eager"))
        check_positive(
            trainer__accumulate=self.accumulate,
            trainer__nodes=self.nodes,
            trainer__rendezvous_seconds=self.rendezvous_seconds,
            trainer__collective_seconds=self.collective_seconds,
            trainer__step_deadline_seconds=self.step_deadline_seconds,
        )
        check_not_negative(trainer__profile=self.profile or 0, trainer__step_deadline=self.step_deadline)
        if 0 < self.step_deadline < 2:
            raise UserError(
                f"trainer.step_deadline={self.step_deadline:g}: steps vary, give at least 2 times the median, or 0"
            )
        if self.step_deadline and self.step_deadline_seconds >= self.collective_seconds:
            raise UserError(
                f"trainer.step_deadline_seconds={self.step_deadline_seconds:g} would come after "
                f"trainer.collective_seconds={self.collective_seconds:g}, when the ranks give up: give less"
            )
        if self.devices == 0 or self.devices < -1:
            raise UserError(f"trainer.devices={self.devices}: give a number of processes, or -1 for every GPU")

    def check_profile(self, steps: int) -> None:
        """Raises UserError unless `profile` is one of the steps of the run."""
        if (self.profile or 0) > steps:
            raise UserError(f"trainer.profile={self.profile}, but the run has {steps} steps (stage.steps): give one")


@dataclass
class LogConfig(ConsoleConfig):
    every: int = 10  # optimizer steps between rows
    wandb: str = "auto"  # auto: online if the user is logged in, else offline; online, offline, disabled
    project: str = "gen1-train"  # of W&B
    wandb_seconds: float = 30.0  # the longest wait for W&B's server, at the start and at the end

    @override
    def check(self) -> None:
        super().check()
        check_choice("log.wandb", self.wandb, ("auto", "online", "offline", "disabled"))
        check_positive(log__every=self.every, log__wandb_seconds=self.wandb_seconds)


def masked(value: Any) -> Any:
    """Returns a value of a config without the credentials of its URLs, whichever setting has them."""
    if isinstance(value, dict):
        return {name: masked(each) for name, each in value.items()}
    if isinstance(value, list):
        return [masked(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


class StoredConfig:
    """A config that run folders and checkpoints store as YAML. Its sections are dataclasses that check themselves."""

    name: str
    output: str

    @property
    def tree(self) -> Path:
        """The run tree: OUTPUT/NAME."""
        return Path(self.output) / self.name

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Reads what `to_yaml` wrote. Raises ValueError if this version cannot read it, see `structured`."""
        return structured(cls, parse_yaml(text))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file of a config. Raises as `from_yaml`, and OSError."""
        return structured(cls, read_yaml(path))

    def to_yaml(self) -> str:
        """Returns the resolved config, as the run folder and every checkpoint store it, and W&B; without secrets."""
        return yaml.safe_dump(masked(asdict(self)), sort_keys=False)  # type: ignore[call-overload]

    def check_sections(self) -> None:
        """Raises UserError for the first section that is invalid."""
        for section in vars(self).values():
            if is_dataclass(section) and hasattr(section, "check"):
                section.check()


class RunConfig(Protocol):
    """What the configs of a stage and of the prior have in common: the settings of a run, whatever it trains."""

    name: str
    seed: int
    restart: bool
    check_only: bool
    ema: EmaConfig  # averages of the weights
    trainer: TrainerConfig  # devices, nodes, precision, accumulation, compiling
    checkpoint: CheckpointConfig  # how often, and how many are kept
    log: LogConfig  # rows of metrics.csv, W&B, and lines on the terminal

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def stage(self) -> "NamedStage": ...

    @property
    def tree(self) -> Path: ...

    def to_yaml(self) -> str: ...


class NamedStage(Protocol):
    """What every stage has, including the prior."""

    name: str
    steps: int


@dataclass
class TrainConfig(StoredConfig):
    stage: StageConfig  # the stage's steps, data and layers; conf/stage has their values
    images: str | None = None  # stage=customize: a folder with 15 to 30 images of the subject
    name: str = "gen1"  # of the run tree: OUTPUT/NAME/stageN, OUTPUT/NAME/customize
    output: str = "runs"  # folder of the run trees
    seed: int = 0  # of new weights, of the order of the data, and of all noise
    model: UNetConfig = field(default_factory=UNetConfig)  # the UNet: widths, layers, attention, recomputed activations
    data: DataConfig = field(default_factory=DataConfig)  # the shard set, the batch, and the order of samples
    init: InitConfig = field(default_factory=InitConfig)  # the weights that the run starts from
    customize: CustomizeConfig = field(default_factory=CustomizeConfig)  # stage=customize: LoRA, over-fitting
    optim: OptimConfig = field(default_factory=OptimConfig)  # AdamW: learning rate, warm-up, decay, clipping
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)  # the noise schedule and the loss
    ema: EmaConfig = field(default_factory=EmaConfig)  # averages of the weights
    guard: GuardConfig = field(default_factory=GuardConfig)  # steps that are skipped because of a bad gradient
    validation: ValidationConfig = field(default_factory=ValidationConfig)  # the validation loss, and edits as previews
    strategy: StrategyConfig = field(default_factory=StrategyConfig)  # how processes share the run: ZeRO, offload
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # devices, nodes, precision, accumulation, compiling
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # how often, and how many are kept
    log: LogConfig = field(default_factory=LogConfig)  # metrics.csv, W&B, and lines on the terminal
    restart: bool = False  # start at step 0 if all checkpoints are damaged; old files move into RUN/before-restart-1
    check_only: bool = False  # make the checks of a start, on this process only, and do nothing
    plan_only: bool = False  # print what the run will need (memory, disk, FLOPs, days), and do nothing
    plan: PlanConfig = field(default_factory=PlanConfig)  # what plan_only=true assumes about the GPUs

    def destinations(self) -> list[tuple[str, Path]]:
        """The run folder and the setting that names it; none for a call that only checks or plans."""
        return [] if self.check_only or self.plan_only else [("name", run_folder(self.tree, self.stage.name))]

    def check(self) -> None:
        """Raises UserError for an invalid section, and for sections that cannot be combined."""
        self.check_sections()
        self.trainer.check_profile(self.stage.steps)
        self.strategy.check_precision(self.trainer.precision)
        if (setting := whole_weights(self)) and self.strategy.name not in (AUTO, "single", "ddp"):
            raise UserError(
                f"{setting} is for processes that hold whole weights: take strategy=single or ddp, not "
                f"strategy={self.strategy.name}"
            )
        self._check_waits()
        self._check_customization()
        if self.trainer.compile and self.strategy.name == "zero3":
            raise UserError(
                "trainer.compile=true does not go with strategy=zero3, whose hooks fetch the weights of each layer in "
                "the middle of the graph: choose strategy=zero2 or trainer.compile=false"
            )

    def _check_waits(self) -> None:
        """Raises UserError if one rank may wait for longer than the other ranks wait for it."""
        longest = self.trainer.collective_seconds / 2  # the others may have waited for a while before
        waits = {
            "data.stall_seconds": self.data.stall_seconds,
            "checkpoint.patience_seconds": self.checkpoint.patience_seconds,
        }
        for name, value in waits.items():
            if value > longest:
                raise UserError(
                    f"{name}={value:g} is too long: after trainer.collective_seconds={2 * longest:g} the other ranks "
                    f"give up without knowing why; give {longest:g} or less, or raise that one"
                )

    def _check_customization(self) -> None:
        """Raises UserError for other sections that do not go with a customization, and for its settings without one."""
        if self.stage.name != NAME:
            changed = "customize." if self.customize != CustomizeConfig() else None
            if given := "images=" if self.images is not None else changed:
                raise UserError(f"{given} is for stage={NAME}, not for stage={self.stage.name}: leave it out")
            return
        if self.images is None:
            raise UserError(
                f"images is not given: add images=FOLDER with 15 to 30 images of the subject to stage={NAME}"
            )
        if self.data.order == "blocks" or self.data.cache is not None:
            raise UserError(f"data.order=blocks and data.cache are not for stage={NAME}: it reads data.root itself")
        if self.data.image_ratio == 0 or (self.data.image_ratio is None and self.stage.image_ratio == 0):
            raise UserError(
                "data.image_ratio=0 would never read the images of the subject: give a share above 0, up to 1"
            )
        if self.customize.lora_rank is not None:
            self._check_lora()

    def _check_lora(self) -> None:
        if self.strategy.name in ("zero3", FSDP) or self.trainer.compile:
            wrong = "trainer.compile=true" if self.trainer.compile else f"strategy={self.strategy.name}"
            raise UserError(f"{wrong} does not go with customize.lora_rank: take strategy=ddp or zero2, uncompiled")
        if set(self.stage.resets) != set(RESETS):
            raise UserError(
                "stage.resets must hold optimizer and ema with customize.lora_rank: an adapter has neither yet"
            )


def whole_weights(config: TrainConfig) -> str | None:
    """Returns a setting that only goes with processes that hold whole weights; None if there is none."""
    if config.optim.name == ADAMW8BIT:
        return f"optim.name={ADAMW8BIT}"
    return "ema.device=cpu" if config.ema.device == "cpu" else None
