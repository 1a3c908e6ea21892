"""The table of docs/strategies.md: all combinations of settings, and their runs on two CPU processes.

One pair of processes does all runs, because starting DeepSpeed takes longer than a run.
"""

import gc
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pytest import MonkeyPatch
from torch import Tensor, distributed

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import UNET, CheckpointConfig, CheckpointInfo, checkpoints_dir
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig
from gen1_train.training.module import Gen1Module
from gen1_train.training.run import train
from gen1_train.training.stages import StageConfig, stage_unet
from tests.made import WIDTH, make_shard_set

TRAINS = ("*temporal*", "conv_in.*", "*mid_block*.norm*")  # of runs that freeze the other weights
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
    reduce: str = "fp32"
    frozen: bool = False  # the stage trains some weights and freezes the others

    @property
    def name(self) -> str:
        """The name of its run."""
        extras = [self.offload] if self.offload != "none" else []
        extras += [word for word in ("checkpointing", "compile") if getattr(self, word)]
        extras += [] if self.ema else ["no-ema"]
        extras += ["reduce-bf16"] if self.reduce == "bf16" else []
        extras += ["frozen"] if self.frozen else []
        return "-".join([self.strategy, self.precision, *extras])


REFERENCE = Cell("single")
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed")
OFFLOADED = [Cell(name, precision, offload="optimizer") for name in ("zero1", "zero2") for precision in PRECISIONS]
OFFLOADED += [Cell("zero3", offload="optimizer")]
OFFLOADED += [
    Cell(name, precision, checkpointing=True, offload="all") for name in ("zero3", "fsdp") for precision in PRECISIONS
]
FREEZING = [Cell(name, "bf16-mixed", frozen=True) for name in ("single", "ddp", "zero2", "zero3", "fsdp")]
FREEZING += [Cell(name, frozen=True) for name in ("single", "zero3")]
NARROW = [Cell(name, "bf16-mixed", reduce="bf16") for name in STRATEGIES if name != "single"]


def cells(strategy: str) -> list[Cell]:
    """All combinations for a strategy. Only compiling ZeRO-3 is refused."""
    compiled = (False,) if strategy == "zero3" else (False, True)
    combinations = [Cell(strategy, *choice) for choice in product(PRECISIONS, (False, True), compiled)]
    combinations += [Cell(strategy, precision, ema=False) for precision in PRECISIONS]  # averaging follows the step
    return combinations + [cell for cell in OFFLOADED + NARROW if cell.strategy == strategy]


def make_start(root: Path) -> None:
    """Writes a shard set and a stage 2 to start from."""
    make_shard_set(root / "set", width=64, height=32)
    before = replace(STAGE, name="2", predecessor="1", temporal=False)
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(stage_unet(TINY, before))
    info, recorded = CheckpointInfo("2", 1, finished=True), TrainConfig(before, model=TINY).to_yaml()
    commit(begin(root / "start", 1), {UNET: unet.state_dict()}, recorded, info, CheckpointConfig())


def config(root: Path, cell: Cell) -> TrainConfig:
    """A run of a video step and an image step, which skips the temporal layers."""
    model = replace(TINY, checkpointing=[cell.checkpointing] * 2)
    stage = replace(STAGE, trains=list(TRAINS) if cell.frozen else ["*"])
    config = TrainConfig(stage, output=str(root), name=cell.name, model=model)
    config.data.root = str(root / "set")
    config.data.batch_clips = 4
    config.data.workers = 0
    config.init.checkpoint = str(root / "start")
    config.trainer.accelerator = "cpu"
    config.trainer.devices = 1 if cell.strategy == "single" else 2
    config.trainer.precision = cell.precision
    config.trainer.compile = cell.compile
    config.trainer.compile_backend = "eager"
    config.strategy.name = cell.strategy
    config.strategy.offload = cell.offload
    config.strategy.persist_below = 0
    config.strategy.reduce = cell.reduce
    config.checkpoint.every = 1
    config.checkpoint.keep = 2
    config.log.wandb = "disabled"
    config.log.every = 1
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 2
    config.ema.decays = [0.9, 0.25] if cell.ema else []
    config.validation.every = 0
    config.validation.edit_every = 0
    return config


def folder(root: Path, name: str) -> Path:
    """The run folder of a cell."""
    return root / name / f"stage{STAGE.name}"


def run_all(rank: int, root: Path, which: list[Cell]) -> None:
    """What each process does. A compiled graph serves all cells with equal UNets."""
    torch._dynamo.config.recompile_limit = 4 * len(which)  # type: ignore[attr-defined]
    for cell in which:
        if cell.strategy == "single" and rank > 0:
            continue
        settings = config(root, cell)
        with recorded_inputs(root / cell.name / f"inputs-{rank}.jsonl"):
            train(settings)
        if cell in OFFLOADED or cell in NARROW or cell in FREEZING:
            if rank == 0:
                copy_first_step(root, cell)
            if cell.strategy != "single":
                distributed.barrier()
            # one that sums in bfloat16 continues in float32, the others as they were
            strategy = replace(settings.strategy, reduce="fp32")
            train(replace(settings, name=resumed(cell), strategy=strategy))
        gc.collect()  # DeepSpeed's engines hold references to themselves


@contextmanager
def recorded_inputs(path: Path) -> Iterator[None]:
    """Appends to a file what the UNet gets for each sample: a hash of the noisy latents, timestep and content."""
    predict = Gen1Module.predict_step

    def record(module: Gen1Module, *inputs: Any, **options: Any) -> Tensor:
        with open(path, "a") as file:
            for sample in zip(*inputs):
                values = b"".join(value.flatten().numpy().tobytes() for value in sample)
                file.write(hashlib.sha256(values).hexdigest() + "\n")
        return predict(module, *inputs, **options)

    path.parent.mkdir(parents=True, exist_ok=True)
    with MonkeyPatch.context() as patch:
        patch.setattr(Gen1Module, "predict_step", record)
        yield


def resumed(cell: Cell) -> str:
    """The name of the run that resumes after the first step of a cell."""
    return f"{cell.name}-resumed"


def copy_first_step(root: Path, cell: Cell) -> None:
    """Copies a run as it was after its first step."""
    shutil.copytree(root / cell.name, root / resumed(cell))
    for path in checkpoints_dir(folder(root, resumed(cell))).glob("step-*"):
        if path.name != "step-00000001":
            shutil.rmtree(path)
