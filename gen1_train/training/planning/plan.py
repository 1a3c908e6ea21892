"""Plans the cost of a run from its config: memory of every rank, disk, FLOPs, days and GPU hours.

An ordinary run prints one line of the plan and refuses what certainly does not fit. `plan_only=true` prints the whole
plan, initializes no device, starts no process and writes nothing. memory.py documents how the bytes are computed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from gen1_train.batch import Pool
from gen1_train.data.mix import share_of
from gen1_train.data.schedule import Schedule
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.model.unet import UNetConfig
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.customization.lora import add_lora
from gen1_train.training.customization.subject import find_images
from gen1_train.training.planning.gpus import GIBI, MARGIN, fits, gpu_bytes, smallest_card
from gen1_train.training.planning.memory import Layout, MemoryPlan, Planner, ZeroSettings
from gen1_train.training.planning.throughput import step_flops
from gen1_train.training.planning.tracing import Adapt, MicroBatch
from gen1_train.training.preflight import (
    check_disk,
    check_start,
    checkpoint_bytes,
    encodes,
    micro_clips,
    open_autoencoder,
    open_data,
    open_schedule,
    process_count,
    room_for_checkpoints,
    schedule_settings,
)
from gen1_train.training.stages import predecessor, stage_unet
from gen1_train.training.strategy import ZeroStrategy, build_strategy

FACTOR = 8  # pixels per latent of Stable Diffusion's autoencoder, for a plan without a shard set
AUTOENCODER = 4 * 83_653_863  # bytes of Stable Diffusion's autoencoder
ROWS = 20  # the newest rows of metrics.csv that the rate is computed from


@dataclass(frozen=True)
class PlannedData:
    """The data that a run reads, as far as the cost depends on it."""

    pools: list[tuple[Pool, int]]  # pool, number of samples
    share: float  # of image steps
    frames: int  # of a clip; this number of images costs as much
    factor: int  # pixels per latent
    frozen: int  # bytes of the frozen autoencoder, if the stage needs it on its device

    def micro_batch(self, pool: Pool, clips: int) -> MicroBatch:
        """Returns a micro-batch of a number of clips, or of the images that cost as much."""
        samples = clips * (self.frames if pool.kind == "image" else 1)
        return MicroBatch(pool.kind, samples, pool.frames, pool.height // self.factor, pool.width // self.factor)


@dataclass(frozen=True)
class Ranks:
    world: int
    layout: Layout
    unet: UNetConfig
    adapt: Adapt | None = None  # adds an adapter to the UNet


def data_of(schedule: Schedule, autoencoder: Autoencoder | None) -> PlannedData:
    """Describes the data of a schedule; `autoencoder`: None if the stage does not need it."""
    pools = [(pool.pool, pool.samples) for pool in schedule.pools]
    factor = schedule.shards.manifest.estimators["autoencoder"]["factor"]
    frozen = 0 if autoencoder is None else sum(p.numel() * p.element_size() for p in autoencoder.parameters())
    return PlannedData(pools, float(schedule.share), schedule.settings.frames, factor, frozen)


def planned_data(config: TrainConfig, resume: Checkpoint | None) -> PlannedData:
    """Describes the data of the shard set, or of plan.buckets without one. Raises UserError as a run would.

    A customization is planned with the buckets of its checkpoint, because the shard set of its images is written by a
    run.
    """
    if config.images is not None:
        find_images(Path(config.images))
        start = resume or predecessor(config.stage, config.init, config.tree)
        return _data_of_buckets(replace(config, plan=replace(config.plan, buckets=start.info.buckets)))
    if config.data.root is None:
        return _data_of_buckets(config)
    shards = open_data(config)
    schedule, _ = open_schedule(config, shards, resume)
    if resume is None and config.stage.predecessor is not None:
        check_start(config, shards.manifest, predecessor(config.stage, config.init, config.tree))
    return data_of(schedule, open_autoencoder(config, shards.manifest) if encodes(config, shards.manifest) else None)


def _data_of_buckets(config: TrainConfig) -> PlannedData:
    """Describes pools of all buckets for all kinds of the stage, with equal shares."""
    if not config.plan.buckets:
        raise UserError("there is nothing to plan with: give data.root=FOLDER, or plan.buckets=[448x256]")
    share = float(share_of(schedule_settings(config).image_ratio))
    frames = config.model.max_frames
    pools = []
    for bucket in config.plan.buckets:
        size = re.fullmatch(r"(\d+)x(\d+)", bucket)
        if size is None or any(int(side) % FACTOR or not int(side) for side in size.groups()):
            raise UserError(f"plan.buckets={bucket} is not WIDTHxHEIGHT in multiples of {FACTOR} pixels: give 448x256")
        width, height = int(size[1]), int(size[2])
        pools += [(Pool("image", width, height, 1), 1)] if share > 0 else []
        pools += [(Pool("video", width, height, frames), 1)] if share < 1 else []
    return PlannedData(pools, share, frames, FACTOR, AUTOENCODER if config.stage.max_level > 0 else 0)


def ranks_of(config: TrainConfig) -> Ranks:
    """Returns how the config is divided among its ranks, on any machine."""
    processes = config.trainer.devices if config.trainer.devices > 0 else process_count(config)
    world = processes * config.trainer.nodes
    trainer, averages = config.trainer, len(config.ema.decays)
    gloo = trainer.accelerator == "cpu" or not (config.plan_only or torch.cuda.device_count())
    strategy = build_strategy(config.strategy, world, micro_clips(config, world), gpu=not gloo)
    zero = None
    if isinstance(strategy, ZeroStrategy):
        assert isinstance(strategy.config, dict)
        zero = ZeroSettings.read(strategy.config["zero_optimization"])
    offload = config.strategy.offload
    layout = Layout(config.strategy.name, trainer.precision, world, trainer.accumulate, averages, zero, offload, gloo)
    adapt = None if config.customize.lora_rank is None else partial(add_lora, config=config.customize, seed=config.seed)
    return Ranks(world, layout, stage_unet(config.model, config.stage), adapt)


def make_planner(ranks: Ranks, data: PlannedData) -> Planner:
    return Planner(ranks.unet, ranks.layout, data.frozen, ranks.adapt)


def memory_line(config: TrainConfig, data: PlannedData, run: Path) -> str:
    """Returns one line about the memory of a run. Raises UserError if it certainly does not fit the disk or the GPUs.

    Only the largest pool is planned, because the others take less.
    """
    ranks = ranks_of(config)
    planner = make_planner(ranks, data)
    check_checkpoint_space(config, run, planner)
    kind = "video" if data.share < 1 else "image"
    pool = max((pool for pool, _ in data.pools if pool.kind == kind), key=lambda pool: pool.width * pool.height)
    memory = planner.plan([data.micro_batch(pool, micro_clips(config, ranks.world))])
    card = gpu_bytes() if config.trainer.accelerator != "cpu" and torch.cuda.device_count() else None
    if card is not None and memory.total > card * MARGIN:
        raise UserError(
            f"a rank needs {memory.total / GIBI:.1f} GiB and its GPU has {card / GIBI:.1f}: raise "
            "trainer.accumulate=, set model.checkpointing=, use another strategy=, or see plan_only=true"
        )
    resident, added = sum(memory.resident.values()), memory.peaks[0].bytes
    parts = f"{resident / GIBI:.2f} resident, a step of {pool.name} adds {added / GIBI:.2f}"
    return f"planned memory of a rank: {memory.total / GIBI:.2f} GiB ({parts})"


def check_checkpoint_space(config: TrainConfig, run: Path, planner: Planner) -> int:
    """Returns the bytes of one checkpoint. Raises UserError if those that a run keeps do not fit on its disk."""
    adapter = planner.trained if config.customize.lora_rank is not None else 0
    size = checkpoint_bytes(planner.weights, len(config.ema.decays), adapter)
    check_disk(run, room_for_checkpoints(run, config.checkpoint.keep, size))
    return size


def plan_lines(config: TrainConfig, run: Path, resume: Checkpoint | None) -> Iterator[str]:
    """Yields the lines of the whole plan. Raises UserError like a run, except if it does not fit the GPU."""
    data, ranks = planned_data(config, resume), ranks_of(config)
    planner, clips = make_planner(ranks, data), micro_clips(config, ranks.world)
    memory = planner.plan([data.micro_batch(pool, clips) for pool, _ in data.pools])
    size = check_checkpoint_space(config, run, planner)
    numbers = f"{ranks.layout.strategy}, {ranks.layout.precision}, {ranks.world} ranks"
    yield f"stage {config.stage.name}: {planner.weights / 1e6:.1f} M weights, {numbers}"
    batch = f"{config.data.batch_clips} clips or {config.data.batch_clips * data.frames} images"
    yield f"a step: {batch}, {clips} clips per micro-batch of a rank, {config.trainer.accumulate} micro-batches"
    yield from memory_lines(memory, [pool for pool, _ in data.pools])
    yield from fit_lines(config, data, ranks, memory)
    kept = config.checkpoint.keep + 1
    yield f"disk: {size / 1e9:.2f} GB per checkpoint, {kept * size / 1e9:.2f} GB for {kept} of them in {run}"
    yield from time_lines(config, data, ranks, run, resume.info.step if resume else 0)
    if config.data.root is None:
        yield "not checked without data.root: the shard set, and the checkpoint that the stage starts from"


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
    if ranks.layout.strategy == "zero3":
        yield "note: plans of zero3 are too low; a measured peak was 31 % above its plan (docs/memory.md)"
    gigabytes = config.plan.gigabytes
    card = gigabytes * GIBI if gigabytes is not None else gpu_bytes()
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
        most = largest_micro_batch(other, data.frozen, work, card)
        parts = next((parts for parts in range(1, clips + 1) if clips % parts == 0 and clips // parts <= most), None)
        remedy = f"trainer.accumulate={parts}" if parts else "no trainer.accumulate= makes it fit"
        yield f"  {name}: at most {most} clips per micro-batch of a rank: {remedy}"


def largest_micro_batch(ranks: Ranks, frozen: int, work: Callable[[int], MicroBatch], card: float) -> int:
    """Returns the clips of the largest micro-batch that fits a card, in a run that accumulates; 0 if none does.

    The memory of a pass is linear in the number of clips, so two traces are enough.
    """
    planner = Planner(ranks.unet, replace(ranks.layout, accumulate=2), frozen, ranks.adapt)
    one, two = planner.peak(work(1)), planner.peak(work(2))
    left = card / MARGIN - sum(planner.resident().values())
    each = two.backward - one.backward
    return 0 if max(one.bytes, one.optimizer) > left else int((left - one.backward) // each) + 1


def time_lines(config: TrainConfig, data: PlannedData, ranks: Ranks, run: Path, start: int) -> Iterator[str]:
    """Yields the FLOPs, days and GPU hours of the remaining steps."""
    left, step = config.stage.steps - start, mean_step_flops(config, data, ranks.unet)
    yield f"{left} steps of {step / 1e15:.3g} PFLOP: {left * step / 1e18:.3g} EFLOP"
    rates = [float(row["frames_per_second"]) for row in read_metrics(run / "metrics.csv") if "frames_per_second" in row]
    if rates:
        rate = median(rates[-ROWS:])
        seconds, source = left * config.data.batch_clips * data.frames / rate, f"{rate:.4g} frames/s of metrics.csv"
    elif config.plan.tflops is not None:
        seconds = left * step / (ranks.world * config.plan.tflops * 1e12 * config.plan.mfu)
        source = f"{config.plan.mfu:.0%} of {config.plan.tflops:g} TFLOP/s on each of {ranks.world} GPUs"
    else:
        yield "for days and GPU hours give plan.tflops=, the peak bf16 TFLOP/s of one GPU (docs/memory.md)"
        return
    yield f"{seconds / 86400:.2f} days, {seconds / 3600 * ranks.world:.0f} GPU hours, at {source}"


def mean_step_flops(config: TrainConfig, data: PlannedData, unet: UNetConfig) -> float:
    """Returns the mean FLOPs of an optimizer step of all ranks; pools of a kind are weighted by their samples."""
    mean = 0.0
    for kind, share in (("image", data.share), ("video", 1 - data.share)):
        pools = [(pool, samples) for pool, samples in data.pools if pool.kind == kind]
        for pool, samples in pools if share else []:
            work = data.micro_batch(pool, config.data.batch_clips)
            one = step_flops(unet, work.height, work.width, work.frames, temporal=kind == "video").total
            mean += share * samples / sum(samples for _, samples in pools) * work.samples * one
    return mean


def _list(levels: list[bool]) -> str:
    return f"[{','.join(str(level).lower() for level in levels)}]"
