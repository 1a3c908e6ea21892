"""Compares strategy.reduce=fp32 with bf16: losses and weights of the miniature. JSON lines on stdout.

    python -m benchmarks.training.reduce FOLDER [--seeds 3] [--steps 300] [--strategies zero1 zero2]

A narrow UNet learns the miniature world's images from random weights, on two gloo ranks with accumulate=8. For each
seed a run in fp32 is the reference; the runs in bf16-mixed differ from each other in `strategy.reduce` alone. All runs
of a seed start from the same weights, and draw the same samples, timesteps and noise. Called again, it continues:
FOLDER/rows.jsonl holds the finished runs.

`losses` is the mean training loss of a run's last third of steps, and `final` the loss of its last float32 weights
over 96 images at fixed timesteps and noise. Their differences are those of fp32 minus bf16, by seed, then averaged
over seeds, each with its 95 % interval (Student's t). A run's distance is the norm of the difference between its
weights and those of the fp32 run, in units of the norm of that run's own change from the start. The last rows are the
errors of one gradient by the number of micro-batches that it sums, see `roundings`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.ranks import in_ranks
from benchmarks.unet_step import commit
from gen1_train.batch import Batch, Sample, collate
from gen1_train.data.shards import ShardSet
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.state import state_of, weights_of
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy
from miniature.world.world import SOURCES, World, write_world

ROOT = Path(__file__).parents[2]
WORLD = World(clips=0, images=384, height=128, width=224)
UNET = UNetConfig(channels=[32], attention=[False], heads=[1], layers=1, groups=4, context_dim=64, content_dim=64)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=50)
RANKS = 2
ACCUMULATE = 8
IMAGES = 2  # of a micro-batch of a rank
MEASURED = 96  # images of the final loss
PARTS = 16  # of the timesteps, at whose middles the final loss is measured
SUMMED = (2, 8, 16, 64, 128, 256, 512)  # micro-batches whose gradients are summed to measure the rounding
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # of Student's t, by number of seeds


@dataclass(frozen=True)
class Case:
    seed: int
    steps: int
    strategy: str
    precision: str
    reduce: str


@dataclass(frozen=True)
class Images:
    """The images of the shard set, in memory."""

    samples: list[Sample]
    latent_scale: float

    @classmethod
    def read(cls, root: Path) -> "Images":
        shards = ShardSet(root)
        fields = ("moments", "image_embedding")
        ((name, pool),) = shards.manifest.pools.items()
        samples = [shards.read(name, number, fields) for number in range(pool.samples)]
        return cls(samples, shards.manifest.estimators["autoencoder"]["scale"])


def prepare(folder: Path) -> Path:
    """Writes the world and its shard set, unless they exist; returns the set."""
    write_world(folder / "images", WORLD)
    call = [sys.executable, "-m", "data_tools.main", f"source={folder / 'images' / SOURCES}", "recipe=tiny"]
    subprocess.run([*call, f"output={folder / 'shards'}"], cwd=ROOT, check=True, stdout=sys.stderr)
    return folder / "shards"


def train_cases(rank: int, root: Path, cases: Sequence[Case], folder: Path) -> None:
    """What each rank does: it trains all cases, one after another. Rank 0 appends a row for each to rows.jsonl."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    images = Images.read(root)
    for case in cases:
        losses, weights = train_case(rank, case, images)
        if rank > 0:
            continue
        changes = measured(case, images, weights, folder)
        row = {**asdict(case), **changes, "losses": [round(loss, 6) for loss in losses]}
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def made_module(case: Case, images: Images) -> Gen1Module:
    torch.manual_seed(case.seed)
    unet = SpatioTemporalUNet(UNET)
    stage = StageSpec(seed=case.seed, latent_scale=images.latent_scale, steps=case.steps)
    return Gen1Module(unet, OPTIM, DiffusionConfig(), stage)


def train_case(rank: int, case: Case, images: Images) -> tuple[list[float], dict[str, Tensor]]:
    """Trains from random weights; returns the losses of the steps over all ranks, and on rank 0 the final weights."""
    record = Record()
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy=build_strategy(StrategyConfig(case.strategy, reduce=case.reduce), RANKS, IMAGES, gpu=False),
        precision=case.precision,  # type: ignore[arg-type]
        max_steps=case.steps,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=OPTIM.clip_norm,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(made_module(case, images), DataLoader(MicroBatches(rank, case, images), batch_size=None))
    return record.losses.tolist(), record.weights


class Record(Callback):
    """Records the mean loss of every step, and the final weights."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._losses.append(outputs["losses"].mean())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = torch.stack(self._losses).double().view(-1, ACCUMULATE).mean(1)
        self.losses = trainer.strategy.reduce(steps, reduce_op="mean")
        assert isinstance(pl_module, Gen1Module)
        self.weights = state_of(trainer.strategy).gather(weights_of(pl_module.unet), keep=trainer.global_rank == 0)


class MicroBatches(Dataset[Batch]):
    """The micro-batches of a rank, which follow from (seed, step, slot) alone."""

    def __init__(self, rank: int, case: Case, images: Images) -> None:
        self.rank = rank
        self.case = case
        self.images = images

    def __len__(self) -> int:
        return self.case.steps * ACCUMULATE

    def __getitem__(self, number: int) -> Batch:
        step, turn = divmod(number, ACCUMULATE)
        order = torch.randperm(
            len(self.images.samples), generator=torch.Generator().manual_seed(step + self.case.seed * 10**6)
        )
        first = (turn * RANKS + self.rank) * IMAGES
        slots = list(range(first, first + IMAGES))
        return collate("image", step, slots, [self.images.samples[order[slot]] for slot in slots])


@torch.no_grad()
def measured(case: Case, images: Images, weights: dict[str, Tensor], folder: Path) -> dict[str, float]:
    """Returns the final loss, and the distance from the fp32 run of the seed, which is kept in a file."""
    start = made_module(case, images).unet.state_dict()
    module = loaded(case, images, weights)
    losses = [
        module.validation_step(collate("image", number, list(range(PARTS)), [sample] * PARTS)).losses.mean()
        for number, sample in enumerate(images.samples[:MEASURED])
    ]
    path = folder / f"fp32-{case.seed}-{case.steps}.pt"
    if case.precision == "32-true":
        torch.save(weights, path)
    reference = torch.load(path)

    def norm(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return float(torch.cat([(one[name] - other[name]).flatten() for name in reference]).norm())

    return {"final": float(torch.stack(losses).mean()), "distance": norm(weights, reference) / norm(reference, start)}


def loaded(case: Case, images: Images, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Gen1Module:
    module = made_module(case, images)
    module.unet.load_state_dict(weights)
    module.unet.to(dtype)
    module.on_fit_start()
    return module


def roundings(folder: Path, images: Images, steps: int) -> Iterator[dict[str, float]]:
    """Yields the errors of the mean gradient of n micro-batches, for several n, in units of its norm.

    At the final weights of the fp32 run of seed 0. `passes`: of gradients of bfloat16 passes, against those of float32
    passes, both summed in float64. `sums_fp32`, `sums_bf16`: of adding the former one after another in that format.
    """
    torch.set_num_threads(1)
    case = Case(0, steps, "zero1", "32-true", "fp32")
    weights = torch.load(folder / f"fp32-0-{steps}.pt")
    wide, narrow = (loaded(case, images, weights, dtype) for dtype in (torch.float32, torch.bfloat16))
    ranks = [MicroBatches(rank, case, images) for rank in range(RANKS)]
    sums: dict[str, Tensor] = {}
    for number in range(max(SUMMED)):
        batch = ranks[number % RANKS][number // RANKS]
        gradient = gradient_of(narrow, batch)
        added = {
            "passes": gradient_of(wide, batch).double(),
            "exact": gradient.double(),
            "sums_fp32": gradient.float(),
            "sums_bf16": gradient,
        }
        sums = {name: sums[name] + value for name, value in added.items()} if sums else added
        if number + 1 in SUMMED:
            exact = sums["exact"]
            errors = {name: float((value.double() - exact).norm() / exact.norm()) for name, value in sums.items()}
            yield {"summed": number + 1, **{name: error for name, error in errors.items() if name != "exact"}}


def gradient_of(module: Gen1Module, batch: Batch) -> Tensor:
    module.zero_grad()
    module.losses(batch).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in module.unet.parameters() if weight.grad is not None])


def compared(rows: Sequence[dict[str, Any]], strategy: str, seeds: int, steps: int) -> dict[str, Any]:
    """Returns the differences between the two settings of a strategy, over the seeds."""
    found = {(row["seed"], row["reduce"]): row for row in rows if is_compared(row, strategy, steps)}
    pairs = [(found[seed, "fp32"], found[seed, "bf16"]) for seed in range(seeds)]
    last = steps // 3
    differences = {
        "losses": [fmean(wide["losses"][-last:]) - fmean(narrow["losses"][-last:]) for wide, narrow in pairs],
        "final": [wide["final"] - narrow["final"] for wide, narrow in pairs],
    }
    made: dict[str, Any] = {"strategy": strategy, "seeds": seeds}
    for name, values in differences.items():
        made |= {name: fmean(values), f"{name}_interval": interval(values)}
    for number, reduce in enumerate(("fp32", "bf16")):
        made[f"distance_{reduce}"] = fmean(pair[number]["distance"] for pair in pairs)
    return made


def is_compared(row: dict[str, Any], strategy: str, steps: int) -> bool:
    return {"strategy": strategy, "precision": "bf16-mixed", "steps": steps}.items() <= row.items()


def interval(values: Sequence[float]) -> float:
    """Returns half the width of the 95 % interval of the mean of two to eight values."""
    return T95[len(values)] * stdev(values) / len(values) ** 0.5


def main() -> None:
    arguments = parsed()
    folder, steps = arguments.folder.absolute(), arguments.steps
    shards = prepare(folder)
    cases: list[Case] = []
    for seed in range(arguments.seeds):
        cases.append(Case(seed, steps, "zero1", "32-true", "fp32"))
        for strategy in arguments.strategies:
            cases += [Case(seed, steps, strategy, "bf16-mixed", reduce) for reduce in ("fp32", "bf16")]
    if missing := [case for case in cases if not any(asdict(case).items() <= row.items() for row in rows_in(folder))]:
        in_ranks(train_cases, RANKS, shards, missing, folder)
    rows, common = rows_in(folder), {"torch": torch.__version__, "commit": commit()}
    answers = [{**row, "losses": fmean(row["losses"][-(steps // 3) :])} for row in rows]
    answers += [compared(rows, strategy, arguments.seeds, steps) for strategy in arguments.strategies]
    for answer in (*answers, *roundings(folder, Images.read(shards), steps)):
        print(json.dumps({**answer, **common}))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 9))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--strategies", nargs="+", default=["zero1"], choices=("ddp", "zero1", "zero2", "zero3"))
    return parser.parse_args()


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of the finished runs."""
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
