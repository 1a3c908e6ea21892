"""Plans the cost of a run from its config: memory of every rank, disk, FLOPs, days and GPU hours.

An ordinary run prints one line of the plan and refuses what certainly does not fit. `plan_only=true` prints the whole
plan, initializes no device, starts no process and leaves nothing on the disk. memory.py documents how the bytes are
computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from gen1_train.batch import Pool
from gen1_train.errors import UserError
from gen1_train.model.unet import UNetConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.planning.choice import PlannedRun, plan_run
from gen1_train.training.planning.gpus import GIBI, MARGIN, fits, gpu_memory, peak_tflops, smallest_card
from gen1_train.training.planning.memory import MemoryPlan, Peak, Planner
from gen1_train.training.planning.stopping import grace_lines
from gen1_train.training.planning.throughput import step_flops
from gen1_train.training.planning.tracing import MicroBatch
from gen1_train.training.planning.workload import PlannedData, Ranks, on_cpus, planned_data
from gen1_train.training.preflight import check_disk, checkpoint_bytes, micro_clips, room_for_checkpoints

BELOW_PLAN = {"zero3": "10 to 48", "fsdp": "10 to 22"}  # percent by which measured peaks were below an upper bound
ROWS = 20  # the newest rows of metrics.csv that the rate is computed from


def memory_line(planned: PlannedRun, run: Path) -> str:
    """Returns one line about the memory of a run. Raises UserError if it certainly does not fit disk or GPUs."""
    config, memory = planned.config, planned.memory
    check_checkpoint_space(config, run, planned.planner)
    gpu = not on_cpus(config)
    if gpu and (problem := index_problem(config, planned.data, memory.peaks[0], planned.ranks.world)) is not None:
        raise UserError(problem)
    card = gpu_memory(config.plan) if gpu else None
    if card is not None and memory.total > card * MARGIN:
        raise UserError(
            f"a rank needs {memory.total / GIBI:.1f} GiB and its GPU has {card / GIBI:.1f}: raise "
            "trainer.accumulate=, set model.checkpointing=, use another strategy=, or see plan_only=true"
        )
    resident, added = sum(memory.resident.values()), memory.peaks[0].bytes
    parts = f"{resident / GIBI:.2f} resident, a step of {planned.pool.name} adds {added / GIBI:.2f}"
    return f"planned memory of a rank: {memory.total / GIBI:.2f} GiB ({parts})"


def check_checkpoint_space(config: TrainConfig, run: Path, planner: Planner) -> int:
    """Returns the bytes of one checkpoint. Raises UserError if those that a run keeps do not fit on its disk."""
    adapted = config.customize.lora_rank is not None
    size = checkpoint_bytes(planner.weights, planner.trained, len(config.ema.decays), adapted)
    check_disk(run, room_for_checkpoints(run, config.checkpoint.keep, size))
    return size


def plan_lines(config: TrainConfig, run: Path, resume: Checkpoint | None) -> Iterator[str]:
    """Yields the lines of the whole plan. Raises UserError like a run, except if it does not fit the GPU."""
    data = planned_data(config, resume)
    planned = plan_run(config, data)
    config, ranks, planner = planned.config, planned.ranks, planned.planner
    clips = micro_clips(config, ranks.world)
    memory = planner.plan([data.micro_batch(pool, clips) for pool, _ in data.pools])
    size = check_checkpoint_space(config, run, planner)
    if planned.reason is not None:
        yield planned.reason
    numbers = f"{ranks.layout.strategy}, {ranks.layout.precision}, {ranks.world} ranks"
    yield f"stage {config.stage.name}: {planner.weights / 1e6:.1f} M weights, {numbers}"
    parts = f"{clips} clips per micro-batch of a rank, {config.trainer.accumulate} micro-batches"
    yield f"a step: {batch_of(config, data)}, {parts}"
    yield from memory_lines(memory, [pool for pool, _ in data.pools])
    peaks = [] if on_cpus(config) else memory.peaks
    problems = (index_problem(config, data, peak, ranks.world) for peak in peaks)
    yield from dict.fromkeys(problem for problem in problems if problem is not None)  # image and video pools agree
    yield from fit_lines(config, data, ranks, memory)
    kept = config.checkpoint.keep + 1
    yield f"disk: {size / 1e9:.2f} GB per checkpoint, {kept * size / 1e9:.2f} GB for {kept} of them in {run}"
    flops = mean_step_flops(config, data, ranks.unet)
    duration = step_duration(config, data.frames, ranks.world, flops, run)
    left = config.stage.steps - (resume.info.step if resume else 0)
    yield from time_lines(left, ranks.world, flops, duration)
    yield from grace_lines(size, ranks.world, duration.seconds if duration else None, run)
    if config.data.root is None:
        yield "not checked without data.root: the shard set, and the checkpoint that the stage starts from"


def batch_of(config: TrainConfig, data: PlannedData) -> str:
    """Returns the global batch in clips of each length, and in the images that cost as much."""
    frames = config.data.batch_clips * data.frames
    lengths = sorted({pool.frames for pool, _ in data.pools if pool.kind == "video"})
    clips = [f"{frames // length} clips of {length} frames" for length in lengths]
    return " or ".join([*(clips if len(clips) > 1 else [f"{config.data.batch_clips} clips"]), f"{frames} images"])


def memory_lines(memory: MemoryPlan, pools: list[Pool]) -> Iterator[str]:
    yield "resident memory of a rank, GiB:"
    for name, held in sorted(memory.resident.items(), key=lambda part: -part[1]):
        yield f"  {name:18s}{held / GIBI:8.2f}"
    yield f"  {'sum':18s}{sum(memory.resident.values()) / GIBI:8.2f}"
    columns = f"{'samples':>9s}{'activations':>13s}{'passes':>9s}{'optimizer':>11s}{'in total':>11s}"
    yield f"{'added by a step, GiB:':24s}{columns}"
    for pool, peak in zip(pools, memory.peaks, strict=True):
        added = f"{peak.activations / GIBI:13.2f}{peak.backward / GIBI:9.2f}{peak.optimizer / GIBI:11.2f}"
        total = (sum(memory.resident.values()) + peak.bytes) / GIBI
        yield f"  {pool.name:22s}{peak.micro_batch.samples:9d}{added}{total:11.2f}"
    yield f"total of a rank: {memory.total / GIBI:.2f} GiB, plus 1 to 2 GiB for the GPU's context and kernel workspaces"


def fit_lines(config: TrainConfig, data: PlannedData, ranks: Ranks, memory: MemoryPlan) -> Iterator[str]:
    """Yields whether it fits, and the largest micro-batch that does, with and without checkpointing."""
    if below := BELOW_PLAN.get(ranks.layout.strategy):
        note = f"plans of {ranks.layout.strategy} are an upper bound; measured peaks were {below} % below them"
        yield f"note: {note} (docs/memory.md)"
    card = gpu_memory(config.plan)
    if card is None:
        smallest = smallest_card(memory.total)
        yield f"no GPU here: it fits one of {smallest} GiB" if smallest else "no GPU here, and it fits no common GPU"
        card = (smallest or 0) * GIBI
    elif fits(memory.total, card):
        yield f"it fits a GPU of {card / GIBI:.0f} GiB"
    else:
        certain = memory.total > card * MARGIN
        yield f"it {'does not fit' if certain else 'may not fit'} a GPU of {card / GIBI:.0f} GiB"
    if not card:
        return
    largest = max(range(len(memory.peaks)), key=lambda i: memory.peaks[i].bytes)
    work = partial(data.micro_batch, data.pools[largest][0])
    clips = config.data.batch_clips // ranks.world
    everywhere = [True] * len(ranks.unet.channels)
    chosen = {f"model.checkpointing={_list(ranks.unet.checkpointing)}": ranks.unet.checkpointing}
    for name, levels in {**chosen, f"model.checkpointing={_list(everywhere)}": everywhere}.items():
        other = replace(ranks, unet=replace(ranks.unet, checkpointing=levels))
        most = largest_micro_batch(other, data.frozen, work, card, data.step)
        parts = fitting_parts(clips // data.step, most // data.step)
        remedy = f"trainer.accumulate={parts}" if parts else "no trainer.accumulate= makes it fit"
        yield f"  {name}: at most {most} clips per micro-batch of a rank: {remedy}"


def index_problem(config: TrainConfig, data: PlannedData, peak: Peak, world: int) -> str | None:
    """Returns one line if a micro-batch has maps that are too large for a GPU's kernels, with a remedy; else None."""
    if peak.micro_batch.samples <= peak.most_samples:
        return None
    most = data.clips(peak.micro_batch.frames, peak.most_samples)
    parts = fitting_parts(config.data.batch_clips // world // data.step, most // data.step)
    size = f"{data.factor * peak.micro_batch.width}x{data.factor * peak.micro_batch.height}"
    remedy = f"set trainer.accumulate={parts}" if parts else "use smaller frames"
    return (
        f"a micro-batch of {micro_clips(config, world)} clips of {size} has maps of {peak.widest:.3g} elements, and "
        f"convolutions of more than 2^31 may be wrong on a GPU: at most {most} clips; {remedy}"
    )


def fitting_parts(clips: int, most: int) -> int | None:
    """Returns the fewest equal parts of a rank's clips that have at most `most` each; None if there are none."""
    return next((parts for parts in range(1, clips + 1) if clips % parts == 0 and clips // parts <= most), None)


def largest_micro_batch(
    ranks: Ranks, frozen: int, work: Callable[[int], MicroBatch], card: float, step: int = 1
) -> int:
    """Returns the clips of the largest micro-batch that fits a card, in a run that accumulates; 0 if none does.

    It is a multiple of `step`. The memory of a pass is linear in the number of clips, so two traces are enough. It is
    bounded by `MAX_MAP`, too.
    """
    planner = Planner(ranks.unet, replace(ranks.layout, accumulate=2), frozen, ranks.adapt)
    one, two = planner.peak(work(step)), planner.peak(work(2 * step))
    left = card / MARGIN - sum(planner.resident().values())
    each = two.backward - one.backward
    if max(one.bytes, one.optimizer) > left:
        return 0
    return step * min(int((left - one.backward) // each) + 1, one.most_samples // one.micro_batch.samples)


@dataclass(frozen=True)
class StepDuration:
    """How long a step takes, and how that is known."""

    seconds: float
    source: str


def step_duration(config: TrainConfig, frames: int, world: int, flops: float, run: Path) -> StepDuration | None:
    """Returns what the run has measured, or else what the peak rate of the GPU gives; None if neither is known."""
    rates = [float(row["frames_per_second"]) for row in read_metrics(run / "metrics.csv") if "frames_per_second" in row]
    if rates:
        rate = median(rates[-ROWS:])
        return StepDuration(config.data.batch_clips * frames / rate, f"{rate:.4g} frames/s of metrics.csv")
    if (peak := peak_tflops(config.plan)) is None:
        return None
    tflops, name = peak
    seconds = flops / (world * tflops * 1e12 * config.plan.mfu)
    return StepDuration(seconds, f"{config.plan.mfu:.0%} of {tflops:g} TFLOP/s on each of {world} {name}s")


def time_lines(left: int, world: int, flops: float, duration: StepDuration | None) -> Iterator[str]:
    """Yields the FLOPs, days and GPU hours of the steps that are left; `flops`: of a step of all `world` ranks."""
    yield f"{left} steps of {flops / 1e15:.3g} PFLOP: {left * flops / 1e18:.3g} EFLOP"
    if duration is None:
        yield "for days and GPU hours give plan.gpu= or plan.tflops=, the peak bf16 rate of one GPU (docs/memory.md)"
        return
    seconds = left * duration.seconds
    yield f"{seconds / 86400:.2f} days, {seconds / 3600 * world:.0f} GPU hours, at {duration.source}"


def mean_step_flops(config: TrainConfig, data: PlannedData, unet: UNetConfig) -> float:
    """Returns the mean FLOPs of an optimizer step of all ranks; pools of a kind are weighted by their frames."""
    mean = 0.0
    for kind, share in (("image", data.share), ("video", 1 - data.share)):
        pools = [(pool, samples * pool.frames) for pool, samples in data.pools if pool.kind == kind]
        for pool, frames in pools if share else []:
            work = data.micro_batch(pool, config.data.batch_clips)
            one = step_flops(unet, work.height, work.width, work.frames, temporal=kind == "video").total
            one += pool.frames * data.encoding(pool.height, pool.width) if data.encoding is not None else 0
            mean += share * frames / sum(frames for _, frames in pools) * work.samples * one
    return mean


def _list(levels: list[bool]) -> str:
    return f"[{','.join(str(level).lower() for level in levels)}]"
