"""The question `checkpoint` of train.py: seconds a GB of a checkpoint, and for how long training notices it."""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.made_runs import composed, prepared, trained
from benchmarks.questions import Row
from gen1_train.batch import Pool
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training import checkpoint, state
from gen1_train.training.checkpoint import CheckpointConfig, CheckpointInfo
from gen1_train.training.stages import stage_unet

SMALL_CLIP = Pool("video", 112, 64, 8)
EVERY, NEXT = 8, 4  # steps between two checkpoints; of these, those in which one may still be being written


def ask_checkpoint(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    yield written(arguments, folder)
    model = ["model=small", f"trainer.accelerator={arguments.device}", "trainer.precision=32-true", "strategy=single"]
    start = prepared(folder, SMALL_CLIP, model)
    for asynchronous in ("true", "false"):
        where = folder / f"asynchronous-{asynchronous}"
        given = [*start, f"output={where}", f"checkpoint.asynchronous={asynchronous}"]
        given += ["data.batch_clips=1", "data.workers=1", "trainer.devices=1", "log.every=1"]
        yield {"asynchronous": asynchronous, **held_up(given)}


def written(arguments: argparse.Namespace, folder: Path) -> Row:
    """A checkpoint of the small model, with one average, in turns with torch.save and fsync."""
    config = composed(["stage=4", "model=small"])
    unet = SpatioTemporalUNet(stage_unet(config.model, config.stage)).to(arguments.device)
    held, average = state.PlainState(torch.optim.AdamW(unet.parameters())), "ema_0.9999"
    held.create_moments(0)
    held.create_average(average)
    entries = {checkpoint.UNET: state.weights_of(unet), checkpoint.OPTIMIZER: state.moments_of(unet)}
    entries[f"{average}.safetensors"] = state.averages_of(unet, average)
    info = CheckpointInfo("4", 1, finished=False, counters={"averaged": {average: 1}})
    plain: list[float] = []
    parts: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        os.sync()
        seconds: dict[str, float] = defaultdict(float)
        with ExitStack() as patches:
            for name in ("write_weights", "sync", "sha256"):
                patches.enter_context(patch.object(checkpoint, name, counted(getattr(checkpoint, name), name, seconds)))
            gather = counted(held.gather, "gather", seconds)
            commit_it = counted(checkpoint.commit, "commit", seconds)
            tensors = {file: gather(content, True) for file, content in entries.items()}
            info.step = number + 1
            place = checkpoint.begin(folder / "run", info.step)
            commit_it(place, tensors, config.to_yaml(), info, CheckpointConfig())
        parts.append(dict(seconds))
        os.sync()
        plain.append(save_plainly(tensors, folder / "plain.pt"))
    size = sum(file["bytes"] for file in info.files.values()) / 1e9
    totals = [part["gather"] + part["commit"] for part in parts]
    columns = {"gather": "gather", "write": "write_weights", "sync": "sync", "hash": "sha256"}
    medians = {name: statistics.median(part[key] for part in parts) / size for name, key in columns.items()}
    return {
        "GB": round(size, 3),
        "s_per_GB": round(statistics.median(totals) / size, 3),
        **{f"{name}_s_per_GB": round(value, 3) for name, value in medians.items()},
        "torch.save_s_per_GB": round(statistics.median(plain) / size, 3),
        "ratio": round(statistics.median(own / its for own, its in zip(totals, plain)), 2),
        "ratios": [round(ratio, 2) for ratio in sorted(own / its for own, its in zip(totals, plain))],
    }


def counted(call: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """The same, and the seconds that it takes are added up."""

    def with_clock(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*given, **named)
        finally:
            seconds[name] += time.perf_counter() - began

    return with_clock


def save_plainly(tensors: dict[str, dict[str, torch.Tensor]], path: Path) -> float:
    began = time.perf_counter()
    with path.open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def held_up(given: list[str]) -> Row:
    """Seconds that a checkpoint costs a run: in which nothing else is done, and by which the next steps are longer.

    A row tells of one step, and of the checkpoint that was made just before it.
    """
    rows = trained([*given, f"checkpoint.every={EVERY}", f"stage.steps={3 * EVERY}"])[EVERY:]
    steps = [row["seconds"] * (1 - row["time_checkpoint"]) for row in rows]
    after, alone = ([step for i, step in enumerate(steps) if (i % EVERY < NEXT) == near] for near in (True, False))
    step = statistics.median(alone)
    return {
        "held_up_s": round(statistics.median(row["seconds"] * row["time_checkpoint"] for row in rows[::EVERY]), 3),
        f"next_{NEXT}_steps_longer_s": round(NEXT * (statistics.mean(after) - step), 3),
        "step_s": round(step, 3),
    }
