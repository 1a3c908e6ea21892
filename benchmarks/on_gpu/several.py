"""Training on all GPUs of a machine compared with training on one of them, by strategy."""

import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from benchmarks.on_gpu.batches import Clips
from benchmarks.on_gpu.runner import Skip, attempt, in_one_line
from benchmarks.on_gpu.scale import Scale
from benchmarks.on_gpu.trainers import WARM_UP, build_run
from benchmarks.questions import Row
from benchmarks.ranks import environment, free_ports

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
SECONDS = 75.0  # for the ranks of one strategy


@dataclass(frozen=True)
class Measured:
    seconds: float  # of a step
    peak: int  # bytes on the GPU; 0 on a CPU


def scaling_rows(scale: Scale) -> Iterator[Row]:
    """Yields the rate on all GPUs by strategy. This process must not use CUDA: the ranks are its forks.

    `efficiency`: the rate divided by that of as many GPUs that work alone (strategy=single). Tokens are pixels of the
    latents.
    """
    world = 2 if scale.rehearsal else torch.cuda.device_count()
    if world < 2:
        raise Skip("this machine has one GPU")
    (alone,) = in_forks(scale, "single", 1)
    clips = usual(scale)
    frames = clips.samples * clips.frames
    yield {"strategy": "single", "gpus": 1, **_rates(frames, clips, alone)}

    def measure(strategy: str) -> Row:
        ranks = in_forks(scale, strategy, world)
        slowest = max(ranks, key=lambda rank: rank.seconds)
        slowest = replace(slowest, peak=max(rank.peak for rank in ranks))
        efficiency = round(alone.seconds / slowest.seconds, 3)
        return {**_rates(world * frames, clips, slowest), "efficiency": efficiency}

    for strategy in ("zero1",) if scale.rehearsal else STRATEGIES:
        yield attempt({"strategy": strategy, "gpus": world}, partial(measure, strategy))


def usual(scale: Scale) -> Clips:
    return Clips(scale.usual_clips, scale.frames, *scale.sizes[0])


def _rates(frames: int, clips: Clips, measured: Measured) -> Row:
    rate = frames / measured.seconds
    return {
        "step_ms": round(1000 * measured.seconds, 2),
        "frames_per_second": round(rate, 2),
        "tokens_per_second": round(rate * clips.height * clips.width),
        "peak_GB": round(measured.peak / 1e9, 2) or None,
    }


def in_forks(scale: Scale, strategy: str, world: int) -> list[Measured]:
    """Trains in `world` forks of this process, so that no rank imports anything again, and returns their results.

    Raises RuntimeError if a rank fails, is killed or takes longer than SECONDS.
    """
    context = get_context("fork")
    (port,) = free_ports(1)
    processes, pipes = [], []
    for rank in range(world):
        receiving, sending = context.Pipe(duplex=False)
        with patch.dict(os.environ, environment(rank, world, port) if world > 1 else {}):
            process = context.Process(target=_rank, args=(sending, scale, strategy, rank, world), daemon=True)
            process.start()
        sending.close()
        processes.append(process)
        pipes.append(receiving)
    try:
        return _results(strategy, pipes, time.monotonic() + SECONDS)
    finally:  # the others may wait for one that failed
        for process in processes:
            process.kill()
            process.join()


def _results(strategy: str, pipes: Sequence[Connection], deadline: float) -> list[Measured]:
    results = []
    for rank, pipe in enumerate(pipes):
        if not pipe.poll(max(0, deadline - time.monotonic())):
            raise RuntimeError(f"rank {rank} of {strategy} took longer than {SECONDS:g} s")
        try:
            result = pipe.recv()
        except EOFError as error:
            raise RuntimeError(f"rank {rank} of {strategy} was killed") from error
        if isinstance(result, str):
            raise RuntimeError(f"rank {rank} of {strategy}: {result}")
        results.append(result)
    return results


def _rank(sending: Connection, scale: Scale, strategy: str, rank: int, world: int) -> None:
    try:
        device = torch.device("cuda", rank) if scale.gpu else scale.device
        sending.send(train(replace(scale, device=device), strategy, world))
    except BaseException as error:
        traceback.print_exc()
        sending.send(in_one_line(error))
    finally:
        os._exit(0)  # without finalizers, which may wait for other ranks


def train(scale: Scale, strategy: str, world: int) -> Measured:
    """Trains a few steps as a rank of `world` ranks, with the callbacks of a run."""
    warm_up, steps = (1, 3) if scale.rehearsal else (WARM_UP, WARM_UP + 12)
    timer = StepTimer(warm_up, steps)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"steps": steps, "every": steps, "extra": [timer], "world": world}
        trainer, module, batches = build_run(scale, strategy, usual(scale), Path(folder), **options)
        trainer.fit(module, batches)
    peak = torch.cuda.max_memory_allocated(scale.device) if scale.gpu else 0
    return Measured(timer.seconds / (steps - warm_up), peak)


class StepTimer(Callback):
    """Measures the wall time from the end of the warm-up to that of the last step."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up = warm_up
        self.steps = steps
        self.seconds = 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 not in (self.warm_up, self.steps):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds = time.perf_counter() - self.seconds  # first the time, then the difference
