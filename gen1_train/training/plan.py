"""What a run will take, from its config: memory of every rank, disk, FLOPs, days and GPU hours.

An ordinary run says one line of it and refuses what surely does not fit; `plan_only=true` prints all of it, touches no
device, starts no process and writes nothing. How the bytes are reckoned stands in gen1_train.training.memory.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from gen1_train.batch import Pool
from gen1_train.config import TrainConfig
from gen1_train.data.mix import share_of
from gen1_train.data.schedule import Schedule
from gen1_train.errors import UserError
from gen1_train.model.autoencoder import Autoencoder
from gen1_train.model.unet import UNetConfig
from gen1_train.subject import find_images
from gen1_train.training.checkpoint import Checkpoint
from gen1_train.training.gpus import GIBI, MARGIN, fits, gpu_bytes, smallest_card
from gen1_train.training.lora import add_lora
from gen1_train.training.memory import Layout, MemoryPlan, Planner, ZeroSettings
from gen1_train.training.metrics import read_metrics
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
from gen1_train.training.throughput import step_flops
from gen1_train.training.tracing import Adapt, Work

FACTOR = 8  # pixels per latent of Stable Diffusion's autoencoder, where there is no set to ask
AUTOENCODER = 4 * 83_653_863  # bytes of Stable Diffusion's
ROWS = 20  # of metrics.csv, the newest, from which the rate is taken


@dataclass(frozen=True)
class Material:
    """What is read."""

    pools: list[tuple[Pool, int]]  # and how many samples each has
    share: float  # of image steps
    frames: int  # of a clip: so many images cost as much
    factor: int  # pixels per latent
    frozen: int  # bytes of the frozen autoencoder, where the stage needs it on its device

    def work(self, pool: Pool, clips: int) -> Work:
        """A micro-batch of so many clips, or of the images that cost as much."""
        samples = clips * (self.frames if pool.kind == "image" else 1)
        return Work(pool.kind, samples, pool.frames, pool.height // self.factor, pool.width // self.factor)


@dataclass(frozen=True)
class Ranks:
    world: int
    layout: Layout
    unet: UNetConfig
    adapt: Adapt | None = None  # puts an adapter into it


def material_of(schedule: Schedule, autoencoder: Autoencoder | None) -> Material:
    """What a run reads; `autoencoder`: if the stage needs it."""
    pools = [(pool.pool, pool.samples) for pool in schedule.pools]
    factor = schedule.shards.manifest.estimators["autoencoder"]["factor"]
    frozen = 0 if autoencoder is None else sum(p.numel() * p.element_size() for p in autoencoder.parameters())
    return Material(pools, float(schedule.share), schedule.settings.frames, factor, frozen)


def checked_material(config: TrainConfig, resume: Checkpoint | None) -> Material:
    """From the shard set, or without one from plan.buckets. Raises UserError as a run would.

    Of a customization by the sizes of the checkpoint: the set of its images is made by a run.
    """
    if config.images is not None:
        find_images(Path(config.images))
        start = resume or predecessor(config.stage, config.init, config.tree)
        return _imagined(replace(config, plan=replace(config.plan, buckets=start.info.buckets)))
    if config.data.root is None:
        return _imagined(config)
    shards = open_data(config)
    schedule, _ = open_schedule(config, shards, resume)
    if resume is None:
        check_start(config, shards.manifest)
    return material_of(
        schedule, open_autoencoder(config, shards.manifest) if encodes(config, shards.manifest) else None
    )


def _imagined(config: TrainConfig) -> Material:
    """All buckets for all kinds of the stage, each read as often as any other."""
    if not config.plan.buckets:
        raise UserError("there is nothing to plan with: give data.root=FOLDER, or plan.buckets=[448x256]")
    share = float(share_of(schedule_settings(config).image_ratio))
    frames = config.model.max_frames
    pools = []
    for bucket in config.plan.buckets:
        size = re.fullmatch(r"(\d+)x(\d+)", bucket)
        if size is None or any(int(side) % FACTOR or not int(side) for side in size.groups()):
            raise UserError(f"plan.buckets={bucket} is no WIDTHxHEIGHT in pixels, multiples of {FACTOR}: give 448x256")
        width, height = int(size[1]), int(size[2])
        pools += [(Pool("image", width, height, 1), 1)] if share > 0 else []
        pools += [(Pool("video", width, height, frames), 1)] if share < 1 else []
    return Material(pools, share, frames, FACTOR, AUTOENCODER if config.stage.max_level > 0 else 0)


def ranks_of(config: TrainConfig) -> Ranks:
    """How the config lies on its ranks, on whatever machine this is."""
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


def planner_of(ranks: Ranks, material: Material) -> Planner:
    return Planner(ranks.unet, ranks.layout, material.frozen, ranks.adapt)


def foresee(config: TrainConfig, material: Material, run: Path) -> str:
    """One line about a run that is about to start. Raises UserError when it surely fits neither disk nor GPUs.

    Only the largest pool is looked at: the others take less.
    """
    ranks = ranks_of(config)
    planner = planner_of(ranks, material)
    check_room(config, run, planner)
    kind = "video" if material.share < 1 else "image"
    pool = max((pool for pool, _ in material.pools if pool.kind == kind), key=lambda pool: pool.width * pool.height)
    memory = planner.plan([material.work(pool, micro_clips(config, ranks.world))])
    card = gpu_bytes() if config.trainer.accelerator != "cpu" and torch.cuda.device_count() else None
    if card is not None and memory.total > card * MARGIN:
        raise UserError(
            f"a rank will need {memory.total / GIBI:.1f} GiB and its GPU has {card / GIBI:.1f}: raise "
            "trainer.accumulate=, set model.checkpointing=, take another strategy=, or see plan_only=true"
        )
    standing, added = sum(memory.standing.values()), memory.peaks[0].bytes
    parts = f"{standing / GIBI:.2f} stand, a step of {pool.name} adds {added / GIBI:.2f}"
    return f"memory of a rank by plan: {memory.total / GIBI:.2f} GiB ({parts})"


def check_room(config: TrainConfig, run: Path, planner: Planner) -> int:
    """Bytes of one checkpoint. Raises UserError when those that a run keeps do not fit on its disk."""
    adapter = planner.trained if config.customize.lora_rank is not None else 0
    size = checkpoint_bytes(planner.weights, len(config.ema.decays), adapter)
    check_disk(run, room_for_checkpoints(run, config.checkpoint.keep, size))
    return size


def plan_lines(config: TrainConfig, run: Path, resume: Checkpoint | None) -> Iterator[str]:
    """The whole plan. Raises UserError for what a run would refuse too, but not when it does not fit the GPU."""
    material, ranks = checked_material(config, resume), ranks_of(config)
    planner, clips = planner_of(ranks, material), micro_clips(config, ranks.world)
    memory = planner.plan([material.work(pool, clips) for pool, _ in material.pools])
    size = check_room(config, run, planner)
    numbers = f"{ranks.layout.strategy}, {ranks.layout.precision}, {ranks.world} ranks"
    yield f"stage {config.stage.name}: {planner.weights / 1e6:.1f} M weights, {numbers}"
    batch = f"{config.data.batch_clips} clips or {config.data.batch_clips * material.frames} images"
    yield f"a step: {batch}, {clips} clips in a micro-batch of a rank, {config.trainer.accumulate} micro-batches"
    yield from memory_lines(memory, [pool for pool, _ in material.pools])
    yield from fit_lines(config, material, ranks, memory)
    kept = config.checkpoint.keep + 1
    yield f"disk: {size / 1e9:.2f} GB a checkpoint, {kept * size / 1e9:.2f} GB for {kept} of them in {run}"
    yield from time_lines(config, material, ranks, run, resume.info.step if resume else 0)
    if config.data.root is None:
        yield "not checked without data.root: the shard set, and the checkpoint that the stage starts from"


def memory_lines(memory: MemoryPlan, pools: list[Pool]) -> Iterator[str]:
    yield "what stands in a rank, GiB:"
    for name, held in sorted(memory.standing.items(), key=lambda part: -part[1]):
        yield f"  {name:18s}{held / GIBI:8.2f}"
    yield f"  {'together':18s}{sum(memory.standing.values()) / GIBI:8.2f}"
    columns = f"{'samples':>9s}{'activations':>13s}{'passes':>9s}{'optimizer':>11s}{'with all':>11s}"
    yield f"{'what a step adds, GiB:':24s}{columns}"
    for pool, peak in zip(pools, memory.peaks, strict=True):
        added = f"{peak.activations / GIBI:13.2f}{peak.backward / GIBI:9.2f}{peak.optimizer / GIBI:11.2f}"
        all_ = (sum(memory.standing.values()) + peak.bytes) / GIBI
        yield f"  {pool.name:22s}{peak.work.samples:9d}{added}{all_:11.2f}"
    yield f"a rank in all: {memory.total / GIBI:.2f} GiB, and 1 to 2 GiB of the GPU's context and kernels' workspaces"


def fit_lines(config: TrainConfig, material: Material, ranks: Ranks, memory: MemoryPlan) -> Iterator[str]:
    """Whether it fits, and which micro-batch does, with and without checkpointing."""
    if ranks.layout.strategy == "zero3":
        yield "beware: plans of zero3 are too low, a measured peak was 31 % above its plan (docs/memory.md)"
    given = config.plan.gigabytes
    card = given * GIBI if given is not None else gpu_bytes()
    if card is None:
        smallest = smallest_card(memory.total)
        yield f"no GPU here: it fits one of {smallest} GiB" if smallest else "no GPU here, and it fits no common one"
        card = (smallest or 0) * GIBI
    elif fits(memory.total, card):
        yield f"it fits a GPU of {card / GIBI:.0f} GiB"
    else:
        sure = memory.total > card * MARGIN
        yield f"it {'does not fit' if sure else 'may not fit'} a GPU of {card / GIBI:.0f} GiB"
    if not card:
        return
    largest = max(range(len(memory.peaks)), key=lambda i: memory.peaks[i].bytes)
    work = partial(material.work, material.pools[largest][0])
    clips = config.data.batch_clips // ranks.world
    everywhere = [True] * len(ranks.unet.channels)
    chosen = {f"model.checkpointing={_list(ranks.unet.checkpointing)}": ranks.unet.checkpointing}
    for name, levels in {**chosen, f"model.checkpointing={_list(everywhere)}": everywhere}.items():
        other = replace(ranks, unet=replace(ranks.unet, checkpointing=levels))
        most = largest_micro_batch(other, material.frozen, work, card)
        parts = next((parts for parts in range(1, clips + 1) if clips % parts == 0 and clips // parts <= most), None)
        way = f"trainer.accumulate={parts}" if parts else "no trainer.accumulate= makes it fit"
        yield f"  {name}: at most {most} clips in a micro-batch of a rank: {way}"


def largest_micro_batch(ranks: Ranks, frozen: int, work: Callable[[int], Work], card: float) -> int:
    """Clips of the largest micro-batch that surely fits a card, in a run that accumulates; 0 if none does.

    What a pass takes grows with the clips by equal steps, so two traces tell.
    """
    planner = Planner(ranks.unet, replace(ranks.layout, accumulate=2), frozen, ranks.adapt)
    one, two = planner.peak(work(1)), planner.peak(work(2))
    left = card / MARGIN - sum(planner.standing().values())
    each = two.backward - one.backward
    return 0 if max(one.bytes, one.optimizer) > left else int((left - one.backward) // each) + 1


def time_lines(config: TrainConfig, material: Material, ranks: Ranks, run: Path, start: int) -> Iterator[str]:
    """FLOPs, days and GPU hours of the steps that are left."""
    left, step = config.stage.steps - start, mean_step_flops(config, material, ranks.unet)
    yield f"{left} steps of {step / 1e15:.3g} PFLOP: {left * step / 1e18:.3g} EFLOP"
    rates = [float(row["frames_per_second"]) for row in read_metrics(run / "metrics.csv") if "frames_per_second" in row]
    if rates:
        rate = median(rates[-ROWS:])
        seconds, source = left * config.data.batch_clips * material.frames / rate, f"{rate:.4g} frames/s of metrics.csv"
    elif config.plan.tflops is not None:
        seconds = left * step / (ranks.world * config.plan.tflops * 1e12 * config.plan.mfu)
        source = f"{config.plan.mfu:.0%} of {config.plan.tflops:g} TFLOP/s on each of {ranks.world} GPUs"
    else:
        yield "for days and GPU hours give plan.tflops=, the peak bf16 TFLOP/s of one GPU (docs/memory.md)"
        return
    yield f"{seconds / 86400:.2f} days, {seconds / 3600 * ranks.world:.0f} GPU hours, at {source}"


def mean_step_flops(config: TrainConfig, material: Material, unet: UNetConfig) -> float:
    """Of an optimizer step of all ranks; pools of a kind come up in proportion to their samples."""
    mean = 0.0
    for kind, share in (("image", material.share), ("video", 1 - material.share)):
        pools = [(pool, samples) for pool, samples in material.pools if pool.kind == kind]
        for pool, samples in pools if share else []:
            work = material.work(pool, config.data.batch_clips)
            one = step_flops(unet, work.height, work.width, work.frames, temporal=kind == "video").total
            mean += share * samples / sum(samples for _, samples in pools) * work.samples * one
    return mean


def _list(levels: list[bool]) -> str:
    return f"[{','.join(str(level).lower() for level in levels)}]"
