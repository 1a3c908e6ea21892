"""What a plan is made for: the data that a run reads and how the config is divided among its ranks."""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gen1_train.batch import Pool
from gen1_train.data.manifest import Manifest
from gen1_train.data.mix import share_of
from gen1_train.data.schedule import Schedule, common_clips
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.model.unet import UNetConfig
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.customization.lora import add_lora
from gen1_train.training.customization.subject import find_images
from gen1_train.training.module import freeze
from gen1_train.training.network import ADAMW8BIT
from gen1_train.training.planning.data_order import choose_order
from gen1_train.training.planning.memory import Layout, ZeroSettings
from gen1_train.training.planning.throughput import Encoding
from gen1_train.training.planning.tracing import Adapt, MicroBatch
from gen1_train.training.preflight import (
    check_start,
    encoded_maps,
    encodes,
    micro_clips,
    open_autoencoder,
    open_data,
    open_schedule,
    process_count,
    schedule_settings,
    with_chosen,
)
from gen1_train.training.stages import predecessor, stage_unet
from gen1_train.training.strategies.strategy import build_strategy
from gen1_train.training.strategies.zero import ZeroStrategy

FACTOR = 8  # pixels per latent of Stable Diffusion's autoencoder, for a plan without a shard set
AUTOENCODER = 4 * 83_653_863  # bytes of Stable Diffusion's autoencoder


@dataclass(frozen=True)
class PlannedData:
    """The data that a run reads, as far as the cost depends on it."""

    pools: list[tuple[Pool, int]]  # pool, number of samples
    share: float  # of image steps
    frames: int  # of the shortest clips, which data.batch_clips counts; this number of images costs as much
    factor: int  # pixels per latent
    frozen: int  # bytes of the frozen autoencoder, if the stage needs it on its device
    encoding: Encoding | None = None  # what it computes for a frame in every step

    def micro_batch(self, pool: Pool, clips: int) -> MicroBatch:
        """Returns a micro-batch of a number of clips, or of the samples of the pool that cost as much."""
        samples = clips * self.frames // pool.frames
        return MicroBatch(pool.kind, samples, pool.frames, pool.height // self.factor, pool.width // self.factor)

    def clips(self, frames: int, samples: int) -> int:
        """Returns the number of clips that cost as much as `samples` with this number of frames, rounded down."""
        return samples * frames // self.frames

    @property
    def step(self) -> int:
        """The fewest clips that are whole samples of each pool: a micro-batch is a multiple of it."""
        return common_clips([self.frames, *(pool.frames for pool, _ in self.pools if pool.kind == "video")])


@dataclass(frozen=True)
class Ranks:
    world: int
    layout: Layout
    unet: UNetConfig
    adapt: Adapt  # adds an adapter to the UNet, or freezes what stage.trains leaves out


def data_of(config: TrainConfig, schedule: Schedule, autoencoder: Autoencoder | None) -> PlannedData:
    """Describes the data of a schedule; `autoencoder`: None if nothing needs it."""
    pools = [(pool.pool, pool.samples) for pool in schedule.pools]
    manifest = schedule.shards.manifest
    encoding, frozen = encoding_of(config, manifest, autoencoder), 0
    if encoding is not None and autoencoder is not None:
        frozen = sum(p.numel() * p.element_size() for p in autoencoder.parameters())
    factor = manifest.estimators["autoencoder"]["factor"]
    return PlannedData(pools, float(schedule.share), schedule.settings.frames, factor, frozen, encoding)


def encoding_of(config: TrainConfig, manifest: Manifest, autoencoder: Autoencoder | None) -> Encoding | None:
    """Returns the FLOPs of the autoencoder for a frame in a training step; None if the step does not need it."""
    maps = encoded_maps(config, manifest)
    if autoencoder is None or not maps:
        return None
    return lambda height, width: round(maps * autoencoder.encoding_flops(height, width))


def planned_data(config: TrainConfig, resume: Checkpoint | None) -> PlannedData:
    """Describes the data of the shard set, or of plan.buckets without one. Raises UserError as a run would.

    A customization is planned with the buckets of its checkpoint, because the shard set of its images is written by a
    run.
    """
    if config.images is not None:
        find_images(Path(config.images))
        start = resume or predecessor(config.stage, config.init, config.tree)
        root = config.data.root
        lacks = False
        if root is not None:
            manifest = Manifest.load(Path(root))
            config = with_chosen(config, manifest, start)
            lacks = encodes(config, manifest)
        buckets = replace(config, plan=replace(config.plan, buckets=start.info.buckets))
        return _data_of_buckets(buckets, AUTOENCODER if lacks else 0)
    if config.data.root is None:
        return _data_of_buckets(config)
    config, _ = choose_order(config, resume)
    shards = open_data(config)
    schedule, _ = open_schedule(config, shards, resume)
    before = resume
    if before is None and config.stage.predecessor is not None:
        before = predecessor(config.stage, config.init, config.tree)
        check_start(config, shards.manifest, before)
    config = with_chosen(config, shards.manifest, before)
    needed = open_autoencoder(config, shards.manifest) if encodes(config, shards.manifest) else None
    return data_of(config, schedule, needed)


def _data_of_buckets(config: TrainConfig, frozen: int = 0) -> PlannedData:
    """Describes pools of all buckets for all kinds of the stage, with equal shares.

    `frozen`: bytes of the autoencoder; 0 for shards with all latents, as gen1-data makes them by default.
    """
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
    return PlannedData(pools, share, frames, FACTOR, frozen)


def rank_count(config: TrainConfig) -> int:
    """Returns the number of ranks on all nodes, which may be more than this machine has devices for."""
    processes = config.trainer.devices if config.trainer.devices > 0 else process_count(config)
    return processes * config.trainer.nodes


def on_cpus(config: TrainConfig) -> bool:
    """Whether the ranks are CPU processes. A plan is one for GPUs unless the config says cpu."""
    return config.trainer.accelerator == "cpu" or not (config.plan_only or torch.cuda.device_count())


def ranks_of(config: TrainConfig) -> Ranks:
    """Returns how the config is divided among its ranks, on any machine. `auto` is no strategy, see choice.py."""
    world, gloo = rank_count(config), on_cpus(config)
    trainer = config.trainer
    averages = len(config.ema.decays) if gloo or config.ema.device == "same" else 0  # on the device
    strategy = build_strategy(config.strategy, world, micro_clips(config, world), gpu=not gloo)
    zero = None
    if isinstance(strategy, ZeroStrategy):
        assert isinstance(strategy.config, dict)
        zero = ZeroSettings.read(strategy.config["zero_optimization"])
    offload = config.strategy.offload
    layout = Layout(
        config.strategy.name,
        trainer.precision,
        world,
        trainer.accumulate,
        averages,
        zero=zero,
        offload=offload,
        gloo=gloo,
        reduce=config.strategy.reduce,
        eight_bit=config.optim.name == ADAMW8BIT,
        copies=trainer.nodes if config.strategy.shard_within == "node" else 1,
    )
    return Ranks(world, layout, stage_unet(config.model, config.stage), adapt_of(config))


def adapt_of(config: TrainConfig) -> Adapt:
    """Returns what a run does to its UNet before it trains: see Tracer."""
    if config.customize.lora_rank is not None:
        return partial(add_lora, config=config.customize, seed=config.seed)
    return partial(freeze, trains=config.stage.trains)
