"""Counts what a step sends: the collectives of two training ranks on CPUs. JSON lines on stdout.

    python benchmarks/communication.py

Two ranks train a small UNet on clips with gloo. Collectives are counted in torch's dispatcher, which those of DDP's
reducer, DeepSpeed, FSDP2 and Lightning all pass; the last of three steps counts. A ring all-reduce sends its tensor
twice (it is a reduce-scatter and an all-gather), every other collective once, each times (N - 1) / N for N ranks, which
is left out. The sums are divided by the number of weights, so they do not depend on the size of the network.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # replaces this folder, so that `benchmarks` can be imported

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from benchmarks.ranks import in_ranks
from gen1_train.batch import Batch
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from gen1_train.training.strategies.zero import LIVE_ELEMENTS, ZeroStrategy

UNET = UNetConfig(
    channels=[16, 32], attention=[True] * 2, heads=[2] * 2, layers=1, groups=4, context_dim=16, content_dim=16
)
FULL_SIZE = 1_079_841_604  # weights of the UNet that LIVE_ELEMENTS is meant for
STEPS = 3  # the last one counts
# what passes through a rank's link, in units of the whole tensor
REDUCTIONS = {"allreduce_": 2, "reduce_": 1, "reduce_scatter_": 1, "_reduce_scatter_base_": 1}
REDUCTIONS |= {"reduce_scatter_tensor_coalesced_": 1}
GATHERS = {"allgather_": 1, "_allgather_base_": 1, "allgather_into_tensor_coalesced_": 1, "broadcast_": 1, "barrier": 0}


@dataclass(frozen=True)
class Case:
    strategy: str
    accumulate: int = 1  # micro-batches per optimizer step
    checkpointing: bool = False
    precision: str = "bf16-mixed"
    reduce: str = "fp32"  # strategy.reduce

    @property
    def unet(self) -> UNetConfig:
        return UNetConfig(**{**asdict(UNET), "checkpointing": [self.checkpointing] * len(UNET.channels)})


@dataclass(frozen=True)
class Sent:
    """What passes through the link of a rank in an optimizer step, in units of all gradients or all weights."""

    gradients: float
    weights: float
    bytes: float  # of both together, per weight of the model


def sent(cases: Sequence[Case], seconds: float = 600) -> dict[Case, Sent]:
    """Counts on two ranks, which run all cases one after another. Raises as `in_ranks` does."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = in_ranks(_rank, 2, list(cases), Path(folder), seconds=seconds)
    assert first == second, "the ranks send unequal amounts"
    return dict(zip(cases, first, strict=True))


class Collectives(TorchDispatchMode):
    """Adds up the elements and bytes of all collectives: of reductions, and of gathers and broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        whole = max(
            ([each for each in tree_leaves(arg) if isinstance(each, Tensor)] for arg in args[:2]), key=_elements
        )
        kind = "gradients" if name in REDUCTIONS else "weights"
        times = {**REDUCTIONS, **GATHERS}[name]
        self.elements[kind] += times * _elements(whole)
        self.bytes += times * sum(each.numel() * each.itemsize for each in whole)


def _elements(tensors: list[Tensor]) -> int:
    return sum(each.numel() for each in tensors)


def _rank(rank: int, cases: list[Case], folder: Path) -> list[Sent]:
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    os.chdir(folder)
    torch.set_num_threads(1)
    return [_count(case) for case in cases]


def _count(case: Case) -> Sent:
    unet = SpatioTemporalUNet(case.unet)
    size = sum(weight.numel() for weight in unet.parameters())
    module = Gen1Module(unet, OptimConfig(), DiffusionConfig(), StageSpec(seed=0, latent_scale=1.0))
    counts = Collectives()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=_strategy(case, size),
        precision=case.precision,  # type: ignore[arg-type]
        max_steps=STEPS,
        accumulate_grad_batches=case.accumulate,
        callbacks=[LastStep(counts)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(Clips(STEPS * case.accumulate), batch_size=None))
    return Sent(counts.elements["gradients"] / size, counts.elements["weights"] / size, counts.bytes / size)


def _strategy(case: Case, size: int) -> Any:
    """Builds the strategy as in training; ZeRO-3 keeps the same share of the weights gathered as at full size."""
    config = StrategyConfig(case.strategy, persist_below=0, reduce=case.reduce)
    strategy = build_strategy(config, 2, micro_batch=1, gpu=False)
    if isinstance(strategy, ZeroStrategy):
        assert isinstance(strategy.config, dict)
        live = LIVE_ELEMENTS * size // FULL_SIZE
        strategy.config["zero_optimization"] |= {
            "stage3_max_live_parameters": live,
            "stage3_max_reuse_distance": live,
            "stage3_prefetch_bucket_size": live // 4,
        }
    return strategy


class LastStep(Callback):
    """Counts the collectives of the last optimizer step."""

    def __init__(self, counts: Collectives) -> None:
        self.counts = counts
        self.counting = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, number: int) -> None:
        if trainer.global_step == STEPS - 1 and not self.counting:
            self.counting = True
            self.counts.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == STEPS:
            self.counts.__exit__(None, None, None)


class Clips(Dataset[Batch]):
    """Random clips."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        return Batch("video", number, [0], [""], torch.randn(1, 4, 8, 8, 8), torch.randn(1, 4, UNET.content_dim))


def cases() -> Iterator[Case]:
    for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp"):
        for accumulate in (1, 4):
            yield Case(strategy, accumulate)
            yield Case(strategy, accumulate, reduce="bf16")
    yield Case("zero3", checkpointing=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for case, counted in sent(list(cases())).items():
        row = {**asdict(case), **{name: round(value, 3) for name, value in asdict(counted).items()}}
        print(json.dumps({**row, "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
