"""Answers the question `checkpoint` of train.py: seconds per GB of a checkpoint, and how long it delays training."""

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

from benchmarks.questions import Row
from gen1_train.batch import Pool
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.training.checkpoints import checkpoint, state, writing
from gen1_train.training.checkpoints.checkpoint import CheckpointConfig, CheckpointInfo

SMALL_CLIP = Pool("video", 112, 64, 8)
EVERY = 8  # steps between two checkpoints
NEXT = 4  # steps after a checkpoint in which it may still be being written
AVERAGE = "ema_0.9999"
CLOCKS = {"write": "write_weights", "sync": "sync", "hash": "sha256"}  # parts of a commit: functions of writing.py


def ask_checkpoint(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    from benchmarks.synthetic_runs import prepare_run, run_training  # here: gpu.py has to do without hydra

    yield time_checkpoint(arguments, folder)
    model = ["model=small", f"trainer.accelerator={arguments.device}", "trainer.precision=32-true", "strategy=single"]
    start = prepare_run(folder, SMALL_CLIP, model)
    for asynchronous in ("true", "false"):
        output = folder / f"asynchronous-{asynchronous}"
        overrides = [*start, f"output={output}", f"checkpoint.asynchronous={asynchronous}"]
        overrides += ["data.batch_clips=1", "data.workers=1", "trainer.devices=1", "log.every=1"]
        overrides += [f"checkpoint.every={EVERY}", f"stage.steps={3 * EVERY}"]
        yield {"asynchronous": asynchronous, **delay_of_training(run_training(overrides)[EVERY:])}


def time_checkpoint(arguments: argparse.Namespace, folder: Path) -> Row:
    """Writes checkpoints of the small model with one average, alternating with torch.save and fsync."""
    from benchmarks.synthetic_runs import composed
    from gen1_train.training.stages import stage_unet

    config = composed(["stage=4", "model=small"])
    unet = SpatioTemporalUNet(stage_unet(config.model, config.stage)).to(arguments.device)
    saver = TimedSaver(unet, folder / "run", config.to_yaml())
    plain: list[float] = []
    parts: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        os.sync()
        parts.append(saver.save(number + 1))
        os.sync()
        plain.append(save_plainly(saver.tensors, folder / "plain.pt"))
    size = saver.gigabytes
    totals = [part["gather"] + part["commit"] for part in parts]
    ratios = sorted(own / reference for own, reference in zip(totals, plain))
    medians = {name: statistics.median(part[name] for part in parts) / size for name in ("gather", *CLOCKS)}
    return {
        "GB": round(size, 3),
        "s_per_GB": round(statistics.median(totals) / size, 3),
        **{f"{name}_s_per_GB": round(value, 3) for name, value in medians.items()},
        "torch.save_s_per_GB": round(statistics.median(plain) / size, 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


class TimedSaver:
    """Writes checkpoints of a UNet with AdamW's moments and one average, and measures each part of it."""

    def __init__(self, unet: SpatioTemporalUNet, run: Path, resolved: str = "") -> None:
        """`run`: the run folder; `resolved`: the run's config as YAML."""
        self.run = run
        self.resolved = resolved
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}  # of the last checkpoint, by file
        self.info = CheckpointInfo("4", 1, finished=False, counters={"averaged": {AVERAGE: 1}})
        self._state = state.PlainState(torch.optim.AdamW(unet.parameters()))
        self._state.create_moments(0)
        self._state.create_average(AVERAGE)
        self._entries = {checkpoint.UNET: state.weights_of(unet), checkpoint.OPTIMIZER: state.moments_of(unet)}
        self._entries[f"{AVERAGE}.safetensors"] = state.averages_of(unet, AVERAGE)

    @property
    def gigabytes(self) -> float:
        """The size of the last checkpoint."""
        return sum(file["bytes"] for file in self.info.files.values()) / 1e9

    def save(self, step: int) -> dict[str, float]:
        """Writes the checkpoint of a step; returns the seconds of `gather`, of `commit`, and of the CLOCKS in it."""
        seconds: dict[str, float] = defaultdict(float)
        with ExitStack() as patches:
            for name, function in CLOCKS.items():
                timed = with_clock(getattr(writing, function), name, seconds)
                patches.enter_context(patch.object(writing, function, timed))
            gather = with_clock(self._state.gather, "gather", seconds)
            commit = with_clock(writing.commit, "commit", seconds)
            self.tensors = {file: gather(content, True) for file, content in self._entries.items()}
            self.info.step = step
            commit(writing.begin(self.run, step), self.tensors, self.resolved, self.info, CheckpointConfig())
        return dict(seconds)


def with_clock(call: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Returns a wrapper that adds the duration of every call to `seconds[name]`."""

    def timed_call(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments, **keywords)
        finally:
            seconds[name] += time.perf_counter() - start

    return timed_call


def save_plainly(tensors: dict[str, dict[str, torch.Tensor]], path: Path) -> float:
    start = time.perf_counter()
    with path.open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def delay_of_training(rows: list[dict[str, float]]) -> Row:
    """Measures the seconds that a checkpoint costs a run: those that block it, and those added to the next steps.

    A row covers one step, and the checkpoint that was written just before it.
    """
    steps = [row["seconds"] * (1 - row["time_checkpoint"]) for row in rows]
    after_checkpoint = [step for i, step in enumerate(steps) if i % EVERY < NEXT]
    step = statistics.median(step for i, step in enumerate(steps) if i % EVERY >= NEXT)
    return {
        "held_up_s": round(statistics.median(row["seconds"] * row["time_checkpoint"] for row in rows[::EVERY]), 3),
        f"next_{NEXT}_steps_longer_s": round(NEXT * (statistics.mean(after_checkpoint) - step), 3),
        "step_s": round(step, 3),
    }
