"""Training under Lightning as a run does it, by strategy, and its memory compared with the plan."""

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.memory import Case, peaks_of_rank, planned
from benchmarks.on_gpu.batches import Clips, PreparedBatches, with_structure
from benchmarks.on_gpu.scale import FACTOR, Scale
from benchmarks.on_gpu.timing import release
from benchmarks.questions import Row
from benchmarks.training.turns import Turns
from gen1_train.batch import Batch, Pool
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.callbacks.compiling import Kernels, Shape
from gen1_train.training.callbacks.guard import Guard, GuardConfig
from gen1_train.training.callbacks.measure import BatchFlops, Measure
from gen1_train.training.callbacks.metrics import MetricsCSV
from gen1_train.training.callbacks.saving import Averaging, RestoreState, initial_counters
from gen1_train.training.checkpoints.ema import EmaConfig
from gen1_train.training.checkpoints.info import CheckpointInfo
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from gen1_train.training.strategies.config import StrategyConfig
from gen1_train.training.strategies.strategy import build_strategy

EXTRA_STEPS = 3  # after the last turn
WARM_UP = 4  # steps in which no waits are counted: kernels are chosen, and buffers allocated


def strategy_rows(scale: Scale, strategy: str) -> Iterator[Row]:
    """Yields a run of stage 4 in turns with a bare loop, its waits for the GPU, and the phases of its rows.

    The run has the callbacks of a run besides those that need shards: guard, averages, kernels, rows.
    """
    clips = Clips(scale.usual_clips, scale.frames, *scale.sizes[0])
    with tempfile.TemporaryDirectory() as folder:
        yield from _run(scale, strategy, clips, Path(folder))


def _run(scale: Scale, strategy: str, clips: Clips, folder: Path) -> Iterator[Row]:
    block, turns = (2, 2) if scale.rehearsal else (4, 5)  # steps between two rows and in a turn; turns
    steps = block * turns + (1 if scale.rehearsal else EXTRA_STEPS)
    comparison, waits = Turns(block), Waits(block)
    options: dict[str, Any] = {"steps": steps, "every": block, "extra": [waits, comparison]}
    trainer, module, batches = build_run(scale, strategy, clips, folder, **options)
    trainer.fit(module, batches)
    peak = torch.cuda.max_memory_allocated(scale.device) / 1e9 if scale.gpu else None
    yield {
        "strategy": strategy,
        "clips": clips.samples,
        **{name: value for name, value in comparison.row().items() if not name.startswith("ratios")},
        "waits_per_step": waits.per_step,
        "with_bare_loop_peak_GB": None if peak is None else round(peak, 2),
    }
    yield from ({"strategy": strategy, "wait": place, "per_step": count} for place, count in waits.places.items())
    for row in read_metrics(folder / "metrics.csv")[1:]:
        shown = {name: float(value) for name, value in row.items() if name.startswith("time_") or name == "data_wait"}
        yield {"strategy": strategy, "step": int(row["step"]), **{name: round(x, 4) for name, x in shown.items()}}


def build_run(
    scale: Scale,
    strategy: str,
    clips: Clips,
    folder: Path,
    *,
    steps: int,
    every: int,
    extra: list[Callback],
    world: int = 1,
) -> tuple[Trainer, Gen1Module, DataLoader[Any]]:
    """Builds a run of stage 4 of one of `world` ranks, on `scale.device`, with a row every `every` steps.

    `extra`: callbacks besides those of a run.
    """
    torch.manual_seed(0)
    with scale.device:
        unet = SpatioTemporalUNet(with_structure(scale.unet))
    stage = StageSpec(seed=0, latent_scale=1.0, structure=True, steps=steps)
    module = Gen1Module(unet, OptimConfig(warmup_steps=1), DiffusionConfig(), stage)
    trainer = Trainer(
        accelerator=scale.device.type,
        devices=world,
        strategy=build_strategy(StrategyConfig(strategy), processes=world, micro_batch=clips.samples, gpu=scale.gpu),
        precision="bf16-mixed",
        max_steps=steps,
        gradient_clip_val=OptimConfig.clip_norm,
        callbacks=[*callbacks(unet.config, clips, steps, every, folder), *extra],
        logger=[MetricsCSV(folder / "metrics.csv", resume_step=0)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    return trainer, module, DataLoader(PreparedBatches(module, clips, steps), batch_size=None)


def callbacks(config: UNetConfig, clips: Clips, steps: int, every: int, folder: Path) -> list[Callback]:
    """Returns the callbacks of a run in their order, see training/session.py and stage_callbacks.py."""
    clock, decays = Clock(), EmaConfig().decays
    counters = initial_counters(None, (), decays, resumed=False)
    pool = Pool(clips.kind, FACTOR * clips.width, FACTOR * clips.height, clips.frames)
    measure = Measure(
        title="benchmark",
        steps=steps,
        every=every,
        flops=BatchFlops(config, FACTOR),
        image_share=lambda step: 0.0,
        clock=clock,
    )
    guard = Guard(
        config=GuardConfig(),
        counters=counters,
        run=folder,
        resolved="",
        describe=lambda step: CheckpointInfo("4", step, finished=False),
        on_gradient=measure.gradient,
    )
    return [
        RestoreState(counters=counters, averages=EmaConfig(), source=None, step=0, keeps=()),
        Kernels([Shape(pool, clips.samples, FACTOR)], compiled=False),
        guard,
        Averaging(counters, decays, clock),
        measure,
    ]


class Waits(Callback):
    """Counts where the host waits for the GPU, in steps without a row. It comes after all callbacks of a run.

    torch's sync_debug_mode warns of each wait instead of refusing it: one in each step is meant, when the guard reads
    the gradient's norm. On a CPU nothing waits, and nothing is counted.
    """

    def __init__(self, every: int) -> None:
        """`every`: steps between two rows."""
        self.every = every
        self._seen: Counter[str] = Counter()
        self._steps = 0
        self._recorder: Any = None
        self._caught: list[warnings.WarningMessage] = []

    @property
    def per_step(self) -> float | None:
        return round(self._seen.total() / self._steps, 2) if self._steps else None

    @property
    def places(self) -> dict[str, float]:
        """The number of waits in a step, by the file and line that waits."""
        return {place: round(count / self._steps, 2) for place, count in self._seen.most_common()}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if pl_module.device.type != "cuda" or batch_idx < WARM_UP or (batch_idx + 1) % self.every == 0:
            return
        self._recorder = warnings.catch_warnings(record=True)
        self._caught = self._recorder.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._recorder is None:
            return
        torch.cuda.set_sync_debug_mode("default")
        self._recorder.__exit__(None, None, None)
        self._recorder = None
        self._steps += 1
        waits = [warning for warning in self._caught if "synchronizing CUDA" in str(warning.message)]
        self._seen.update(f"{'/'.join(Path(wait.filename).parts[-3:])}:{wait.lineno}" for wait in waits)


def plan_rows(scale: Scale) -> Iterator[Row]:
    """Yields the planned and the measured peak of a step, by strategy, checkpointing and kind of step."""
    precision = "32-true" if scale.rehearsal else "bf16-mixed"
    for checkpointing in (False,) if scale.rehearsal else (False, True):
        case = Case("single", 1, checkpointing, precision, scale.device.type, full=not scale.rehearsal)
        plan, peaks = planned(case), peaks_of_rank(0, case)
        for kind, peak in peaks.items():
            yield {
                "strategy": case.strategy,
                "checkpointing": checkpointing,
                "kind": kind,
                "planned_GB": round(plan[kind] / 1e9, 3),
                "measured_GB": round(peak / 1e9, 3),
                "ratio": round(plan[kind] / peak, 4),
            }
        release(scale)
