"""Answers the question `parts` of train.py: what a checkpoint costs that all ranks write.

Each rank holds its part of the state as ZeRO-1 does: one row of elements of the weights, each moment and the average.
It copies them, for which training waits, and writes them with the other ranks. In turns with it, all ranks write the
same bytes to the same disk, and sync them, without header, hash, index or name.
"""

import argparse
import math
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _get_default_store

from benchmarks.questions import Row
from benchmarks.ranks import in_ranks
from gen1_train.errors import UserError
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, UNET, CheckpointConfig, CheckpointInfo
from gen1_train.training.checkpoints.reports import Reports
from gen1_train.training.checkpoints.snapshot import Snapshot
from gen1_train.training.checkpoints.state import MOMENTS
from gen1_train.training.checkpoints.writer import Shapes, Writer

AVERAGE = "ema_0.9999"
FULL_GB = 16 * 1.0798  # of Stable Diffusion 1.5's size: weights, two moments and an average, in float32


def ask_parts(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    from benchmarks.synthetic_runs import composed
    from gen1_train.training.stages import stage_unet

    config = composed(["stage=4", "model=sd15"])
    with torch.device("meta"):
        weights = {
            name: list(weight.shape)
            for name, weight in SpatioTemporalUNet(stage_unet(config.model, config.stage)).named_parameters()
        }
    weights = first_of(weights, int(arguments.gigabytes * 1e9 / 16))
    ranks = in_ranks(write, arguments.processes, arguments.processes, weights, folder, arguments.rounds)
    size = 16 * sum(map(math.prod, weights.values())) / 1e9
    # training waits for the slowest rank, and a checkpoint is there when all have written
    slowest: dict[str, list[float]] = {
        name: [max(turn) for turn in zip(*(rank[name] for rank in ranks))] for name in ranks[0]
    }
    medians = {name: statistics.median(values[1:]) for name, values in slowest.items()}
    ratios = sorted(plain / own for plain, own in zip(slowest["plain"][1:], slowest["write"][1:]))
    yield {
        "checkpoint of": f"{arguments.processes} ranks",
        "GB": round(size, 2),
        "held_up_s": round(medians["copy"], 3),
        "first_held_up_s": round(slowest["copy"][0], 3),
        "copy_GB_per_s": round(size / medians["copy"], 2),
        "held_up_s_at_full_size": round(medians["copy"] * FULL_GB / size, 2),
        "write_GB_per_s": round(size / medians["write"], 2),
        "plain_GB_per_s": round(size / medians["plain"], 2),
        "share_of_plain": round(statistics.median(ratios), 2),
        "shares_of_plain": [round(ratio, 2) for ratio in ratios],
    }


def first_of(weights: dict[str, list[int]], elements: int) -> dict[str, list[int]]:
    """Returns the first weights that have this many elements together."""
    kept: dict[str, list[int]] = {}
    for name, shape in weights.items():
        elements -= math.prod(shape)
        if elements < 0:
            break
        kept[name] = shape
    return kept


class Held:
    """The part of a rank in place of a strategy's PlainState."""

    def __init__(self, weights: dict[str, list[int]], rank: int, world: int) -> None:
        total, before = sum(map(math.prod, weights.values())), 0
        begin, end = rank * total // world, (rank + 1) * total // world
        self.ranges: dict[str, tuple[int, int, int]] = {}  # name -> position in the tensor, begin and end in the row
        for name, shape in weights.items():
            low, high = max(begin, before), min(end, before + math.prod(shape))
            if low < high:
                self.ranges[name] = (low - before, low - begin, high - begin)
            before += math.prod(shape)
        self.rows = {kind: torch.rand(end - begin) for kind in (UNET, *MOMENTS, AVERAGE)}

    def pieces(self, entries: dict[str, tuple[str, str]]) -> Iterator[tuple[str, int, Tensor]]:
        for name, (weight, kind) in entries.items():
            if weight in self.ranges:
                start, begin, end = self.ranges[weight]
                yield name, start, self.rows[kind][begin:end]


def write(rank: int, world: int, weights: dict[str, list[int]], folder: Path, rounds: int) -> dict[str, list[float]]:
    """What each rank does; returns its seconds."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    held: Any = Held(weights, rank, world)
    files: Any = {
        UNET: {name: (name, UNET) for name in weights},
        OPTIMIZER: {f"{name}.{moment}": (name, moment) for name in weights for moment in MOMENTS},
        f"{AVERAGE}.safetensors": {name: (name, AVERAGE) for name in weights},
    }
    shapes: Shapes = {
        file: {name: weights[entry[0]] for name, entry in content.items()} for file, content in files.items()
    }
    failures: list[UserError] = []
    writer = Writer(folder / "run", CheckpointConfig(), "", failures.append)
    reports, snapshot = Reports(_get_default_store().clone(), rank, world), Snapshot()
    snapshot.reserve(held, files)
    seconds: dict[str, list[float]] = {"copy": [], "write": [], "plain": []}
    for step in range(1, rounds + 2):
        distributed.barrier()
        start = time.perf_counter()
        pieces = snapshot.take(held, files)
        copied = time.perf_counter() - start
        distributed.barrier()
        start = time.perf_counter()
        info = None if rank else CheckpointInfo("4", step, False, counters={"averaged": {AVERAGE: 1}})
        writer.write_parts(pieces, shapes, step, info, "benchmark", reports, copied)
        writer.wait()
        distributed.barrier()
        seconds["copy"].append(copied)
        seconds["write"].append(time.perf_counter() - start)
        assert not failures, failures
        start = time.perf_counter()
        plain = folder / f"plain-{rank}"
        with plain.open("wb") as file:
            for content in pieces.values():
                for piece in content:
                    file.write(piece.values.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        distributed.barrier()
        seconds["plain"].append(time.perf_counter() - start)
        plain.unlink()
        if not rank:
            shutil.rmtree(folder / "run")
    return seconds
