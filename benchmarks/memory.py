"""Compares the measured peak memory of training with the plan. JSON lines on stdout.

    python benchmarks/memory.py                  # on CPU processes: single; ddp and ZeRO on 1, 2 and 4 ranks
    python benchmarks/memory.py --device cuda    # on one GPU: Stable Diffusion 1.5's size in bf16

On CPUs a peak is the most bytes of storages that were alive at once in a step after the first ones, counted in torch's
dispatcher. (torch.profiler does not see frees by gloo's threads, so its sums grow from step to step.) On a GPU it is
torch's own peak. Image and video steps alternate.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # replaces this folder, so that `benchmarks` can be imported

import argparse
import gc
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.ranks import in_ranks
from gen1_train.batch import Batch
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec, freeze
from gen1_train.training.network import OptimConfig
from gen1_train.training.planning.memory import Layout, Planner, ZeroSettings
from gen1_train.training.planning.tracing import LiveStorages, MicroBatch
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from gen1_train.training.strategies.zero import ZeroStrategy

SMALL = UNetConfig(channels=[64, 128, 256, 256], heads=[2] * 4, layers=1, groups=8, context_dim=64, content_dim=64)
WORKS = (MicroBatch("image", 8, 1, 16, 16), MicroBatch("video", 1, 8, 16, 16))
FULL_WORKS = (MicroBatch("image", 16, 1, 32, 56), MicroBatch("video", 2, 8, 32, 56))
TEMPORAL = ("*temporal*", "conv_in.*")  # the input convolution, so that image steps train something, too
WARM = 2  # unmeasured steps at the start: one of each kind


@dataclass(frozen=True)
class Case:
    strategy: str
    world: int = 1
    checkpointing: bool = False
    precision: str = "32-true"
    device: str = "cpu"
    full: bool = False  # Stable Diffusion 1.5's size
    bucket: int | None = None  # of ZeRO, in elements; None: as in training
    reduce: str = "fp32"  # strategy.reduce
    trains: tuple[str, ...] = ("*",)  # stage.trains

    @property
    def unet(self) -> UNetConfig:
        base = UNetConfig() if self.full else SMALL
        return UNetConfig(**{**asdict(base), "checkpointing": [self.checkpointing] * len(base.channels)})

    @property
    def works(self) -> tuple[MicroBatch, ...]:
        return FULL_WORKS if self.full else WORKS

    def build(self) -> Any:
        """Builds the strategy as in training, except for the bucket."""
        config = StrategyConfig(self.strategy, reduce=self.reduce)
        strategy = build_strategy(config, self.world, micro_batch=1, gpu=self.device == "cuda")
        if isinstance(strategy, ZeroStrategy) and self.bucket is not None:
            assert isinstance(strategy.config, dict)
            strategy.config["zero_optimization"]["reduce_bucket_size"] = self.bucket
        return strategy


def planned(case: Case) -> dict[str, int]:
    """Returns the planned peak of a rank in a step, in bytes, by kind of step."""
    strategy = case.build()
    zero = ZeroSettings.read(strategy.config["zero_optimization"]) if isinstance(strategy, ZeroStrategy) else None
    gloo = case.device == "cpu"
    layout = Layout(case.strategy, case.precision, case.world, zero=zero, gloo=gloo, reduce=case.reduce)
    planner = Planner(case.unet, layout, adapt=partial(freeze, trains=case.trains))
    standing = sum(planner.resident().values())
    return {work.kind: standing + planner.peak(work).bytes for work in case.works}


def measured(case: Case, seconds: float = 300) -> dict[str, int]:
    """Measures the peak of the rank that needs the most memory, by kind of step. Raises as `in_ranks` does."""
    peaks = in_ranks(peaks_of_rank, case.world, case, seconds=seconds)
    return {work.kind: max(peak[work.kind] for peak in peaks) for work in case.works}


def peaks_of_rank(rank: int, case: Case) -> dict[str, int]:
    """Trains a few steps in this process; returns its peak by kind of step, in bytes."""
    if case.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    recorder = GpuPeaks() if case.device == "cuda" else StoragePeaks()
    _train(case, recorder)
    return {work.kind: recorder.peaks[number] for number, work in enumerate(case.works, WARM)}


class StoragePeaks(Callback):
    """Records the most bytes of storages that are alive at once in each step, with those that it finds at its start."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.live = LiveStorages()
        gc.collect()
        for found in gc.get_objects():
            if issubclass(type(found), Tensor) and found.device.type == "cpu" and found.layout == torch.strided:
                self.live.count(found)
        self.live.__enter__()
        self._resizing = patch.object(torch.UntypedStorage, "resize_", self._resize)
        self._resizing.start()

    def on_train_batch_end(self, *_: Any) -> None:
        self._resizing.stop()
        self.live.__exit__(None, None, None)
        self.peaks.append(self.live.peak)

    @property
    def _resize(self) -> Callable[[torch.UntypedStorage, int], torch.UntypedStorage]:
        """UntypedStorage.resize_, with which FSDP2 frees gathered weights."""
        original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            resized = original(storage, size)
            self.live.resize(storage)
            return resized

        return resize


class GpuPeaks(Callback):
    """Records the GPU's peak of each step."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, *_: Any) -> None:
        self.peaks.append(torch.cuda.max_memory_allocated())


class RandomBatches(Dataset[Batch]):
    """Random batches whose kinds alternate."""

    def __init__(self, case: Case) -> None:
        self.works = case.works
        self.content = case.unet.content_dim

    def __len__(self) -> int:
        return WARM + len(self.works)

    def __getitem__(self, step: int) -> Batch:
        work = self.works[step % len(self.works)]
        b, n = work.samples, work.frames
        moments = torch.randn(b, n, 8, work.height, work.width)
        return Batch(work.kind, step, list(range(b)), [""] * b, moments, torch.randn(b, n, self.content))


def _train(case: Case, callback: Callback) -> None:
    with torch.device(case.device):  # at full size, a CPU takes long to draw the weights
        unet = SpatioTemporalUNet(case.unet)
    module = Gen1Module(unet, OptimConfig(), DiffusionConfig(), StageSpec(seed=0, latent_scale=1.0, trains=case.trains))
    trainer = Trainer(
        accelerator=case.device,
        devices=case.world,
        strategy=case.build(),
        precision=case.precision,  # type: ignore[arg-type]
        max_steps=WARM + len(case.works),
        gradient_clip_val=1.0,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(RandomBatches(case), batch_size=None))


def cases(device: str) -> Iterator[Case]:
    if device == "cuda":
        for strategy in ("single", "zero2", "zero3"):
            for checkpointing in (False, True):
                yield Case(strategy, 1, checkpointing, "bf16-mixed", "cuda", full=True)
        return
    for checkpointing in (False, True):
        yield Case("single", 1, checkpointing)
        yield Case("single", 1, checkpointing, trains=TEMPORAL)
    for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp"):
        for world in (1, 2, 4):
            yield Case(strategy, world, checkpointing=True, bucket=2_000_000)
    for strategy in ("zero2", "zero3", "fsdp"):
        yield Case(strategy, 2, checkpointing=True, precision="bf16-mixed", bucket=2_000_000)
        yield Case(strategy, 2, checkpointing=True, precision="bf16-mixed", bucket=2_000_000, trains=TEMPORAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--strategy", help="only this strategy")
    options = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    for case in cases(options.device):
        if options.strategy not in (None, case.strategy):
            continue
        plan, peaks = planned(case), measured(case)
        for kind, peak in peaks.items():
            row = {"kind": kind, "planned": plan[kind], "measured": peak, "ratio": round(plan[kind] / peak, 4)}
            print(json.dumps({**asdict(case), **row, "torch": torch.__version__, "commit": commit}), flush=True)


if __name__ == "__main__":
    main()
