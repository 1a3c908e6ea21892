"""What a start of a stage resolves and verifies, once, before it starts a process or writes a file."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning.strategies import Strategy

from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.training.checkpoints.checkpoint import Checkpoint, Verify
from gen1_train.training.config import TrainConfig
from gen1_train.training.planning.choice import plan_run
from gen1_train.training.planning.data_order import choose_order
from gen1_train.training.planning.plan import memory_line
from gen1_train.training.planning.workload import data_of
from gen1_train.training.preflight import (
    check_start,
    gpu_count,
    log_short_clips,
    micro_clips,
    open_autoencoder,
    open_data,
    open_held_out,
    open_schedule,
    open_validation,
    process_count,
    warn_of_new_levels,
    with_chosen,
)
from gen1_train.training.run_files import warn_of_another_noise
from gen1_train.training.stages import RESETS, inherited, predecessor
from gen1_train.training.strategies.strategy import build_strategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A stage that can start. Everything in it has been opened and checked on this process."""

    config: TrainConfig  # with a strategy in place of strategy=auto, and an order in place of data.order=auto
    run: Path  # the run folder
    resume: Checkpoint | None  # the run's newest whole checkpoint; None for a new run
    predecessor: Checkpoint | None  # what a new run starts from; None for a resumed run, and for stage 1
    keeps: Collection[str]  # what the run takes from either besides weights, see stages.RESETS
    shards: ShardSet
    schedule: Schedule
    history: tuple[str, ...]  # changes of the data in the course of the run
    strategy: Strategy | str
    processes: int  # on this node
    world: int  # processes on all nodes
    held_out: ShardSet | None  # clips for validation
    subject: ShardSet | None  # images for validation, in a customization
    autoencoder: Autoencoder | None

    @property
    def start(self) -> int:
        """Optimizer steps that are done."""
        return self.resume.info.step if self.resume else 0

    @property
    def source(self) -> Checkpoint | None:
        """The checkpoint whose optimizer and averages the run continues with."""
        return self.resume or (self.predecessor if self.keeps else None)

    @property
    def new_changes(self) -> tuple[str, ...]:
        """Changes of the data that this start makes."""
        return self.history[len(self.resume.info.data["history"]) :] if self.resume else ()


def prepare(config: TrainConfig, run: Path, resume: Checkpoint | None, verify: Verify = Checkpoint.verify) -> Ready:
    """Makes all checks of a start that one process can make. Raises UserError."""
    stage, first = config.stage, None
    config, order = choose_order(config, resume)
    if resume is None and config.images is not None:  # its networks are those that the images have to be encoded with
        first = predecessor(stage, config.init, config.tree, verify)
    shards = open_data(config, resume or first)
    schedule, history = open_schedule(config, shards, resume)
    if order is not None:
        logger.info(order)
    log_short_clips(config, schedule)
    if resume is None and first is None and stage.predecessor is not None:
        first = predecessor(stage, config.init, config.tree, verify)
    if first is not None:
        check_start(config, shards.manifest, first)
        warn_of_another_noise(first, config)
        warn_of_new_levels(config, first)
    config = with_chosen(config, shards.manifest, resume or first)
    keeps = RESETS if resume else inherited(stage, config.init, first)
    processes = process_count(config)
    world = processes * config.trainer.nodes
    micro_batch = micro_clips(config, world)
    held_out = open_validation(config, shards)
    autoencoder = open_autoencoder(config, shards.manifest)
    data = data_of(config, schedule, autoencoder)
    planned = plan_run(config, data)
    config = planned.config
    if planned.reason is not None:
        logger.info(planned.reason)
    logger.info(memory_line(planned, run))
    strategy = build_strategy(
        config.strategy, world, micro_batch, gpu_count(config) > 0, config.trainer.collective_seconds
    )
    return Ready(
        config=config,
        run=run,
        resume=resume,
        predecessor=first,
        keeps=keeps,
        shards=shards,
        schedule=schedule,
        history=history,
        strategy=strategy,
        processes=processes,
        world=world,
        held_out=held_out,
        subject=open_held_out(config, shards),
        autoencoder=autoencoder,
    )
