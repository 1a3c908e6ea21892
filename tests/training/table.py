"""The table of docs/strategies.md: ways to train, and the runs of all of them on two CPU processes.

Starting processes takes longer than a run: the runs of a strategy go one after the other in one pair of them.
"""

import gc
import shutil
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import distributed

from gen1_train.config import TrainConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoint import UNET, CheckpointConfig, CheckpointInfo, begin, checkpoints_dir, commit
from gen1_train.training.run import train
from gen1_train.training.stages import StageConfig, stage_unet
from tests.made import WIDTH, make_shard_set

STAGE = StageConfig("3", "2", 2, temporal=True, structure=False, max_level=0, image_ratio=0.5)
TINY = UNetConfig(
    channels=[16, 32],
    attention=[False, False],  # the middle has a transformer all the same
    heads=[2, 2],
    layers=1,
    groups=4,
    context_dim=WIDTH,
    content_dim=WIDTH,
)


@dataclass(frozen=True)
class Cell:
    strategy: str
    precision: str = "32-true"
    checkpointing: bool = False
    compile: bool = False
    offload: str = "none"
    ema: bool = True

    @property
    def name(self) -> str:
        """Of its run."""
        extras = [self.offload] if self.offload != "none" else []
        extras += [word for word in ("checkpointing", "compile") if getattr(self, word)]
        extras += [] if self.ema else ["no-ema"]
        return "-".join([self.strategy, self.precision, *extras])


REFERENCE = Cell("single")
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3")
PRECISIONS = ("32-true", "bf16-mixed")
OFFLOADED = [Cell(name, precision, offload="optimizer") for name in ("zero1", "zero2") for precision in PRECISIONS]
OFFLOADED += [Cell("zero3", offload="optimizer")]
OFFLOADED += [Cell("zero3", precision, checkpointing=True, offload="all") for precision in PRECISIONS]


def cells(strategy: str) -> list[Cell]:
    """All that a strategy runs with: everything but ZeRO-3 compiled, which is refused."""
    compiled = (False,) if strategy == "zero3" else (False, True)
    made = [Cell(strategy, *choice) for choice in product(PRECISIONS, (False, True), compiled)]
    made += [Cell(strategy, precision, ema=False) for precision in PRECISIONS]  # an average is made after the step
    return made + [cell for cell in OFFLOADED if cell.strategy == strategy]


def make_start(root: Path) -> None:
    """A shard set, and a stage 2 to start from."""
    make_shard_set(root / "set", width=64, height=32)
    before = replace(STAGE, name="2", predecessor="1", temporal=False)
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(stage_unet(TINY, before))
    info, recorded = CheckpointInfo("2", 1, finished=True), TrainConfig(before, model=TINY).to_yaml()
    commit(begin(root / "start", 1), {UNET: unet.state_dict()}, recorded, info, CheckpointConfig())


def config(root: Path, cell: Cell) -> TrainConfig:
    """A video step and an image step, which leaves the temporal layers out."""
    model = replace(TINY, checkpointing=[cell.checkpointing] * 2)
    made = TrainConfig(STAGE, output=str(root), name=cell.name, model=model)
    made.data.root, made.data.batch_clips, made.data.workers = str(root / "set"), 4, 0
    made.init.checkpoint = str(root / "start")
    made.trainer.accelerator, made.trainer.devices = "cpu", 1 if cell.strategy == "single" else 2
    made.trainer.precision = cell.precision
    made.trainer.compile, made.trainer.compile_backend = cell.compile, "eager"
    made.strategy.name, made.strategy.offload, made.strategy.persist_below = cell.strategy, cell.offload, 0
    made.checkpoint.every, made.checkpoint.keep = 1, 2
    made.log.wandb, made.log.every = "disabled", 1
    made.optim.lr, made.optim.warmup_steps = 1e-3, 2
    made.ema.decays = [0.9, 0.25] if cell.ema else []
    made.validation.every = made.validation.edit_every = 0
    return made


def folder(root: Path, name: str) -> Path:
    """The run folder of a cell."""
    return root / name / f"stage{STAGE.name}"


def run_all(rank: int, root: Path, which: list[Cell]) -> None:
    """What each process does. A graph serves all cells whose UNets are alike, so most are compiled once only."""
    torch._dynamo.config.recompile_limit = 4 * len(which)  # type: ignore[attr-defined]
    for cell in which:
        if cell.strategy == "single" and rank > 0:
            continue
        made = config(root, cell)
        train(made)
        if cell in OFFLOADED:
            if rank == 0:
                copy_first_step(root, cell)
            distributed.barrier()
            train(replace(made, name=resumed(cell)))
        gc.collect()  # DeepSpeed's engines hold themselves


def resumed(cell: Cell) -> str:
    """The name of the run that goes on from a cell's first step."""
    return f"{cell.name}-resumed"


def copy_first_step(root: Path, cell: Cell) -> None:
    """A copy of a run as it stood after its first step."""
    shutil.copytree(root / cell.name, root / resumed(cell))
    for path in checkpoints_dir(folder(root, resumed(cell))).glob("step-*"):
        if path.name != "step-00000001":
            shutil.rmtree(path)
