"""Keeps the shard cache of each node filled during training, see gen1_train.data.cache."""

import logging
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.data.cache import NodeShards, Prefetcher, working_set
from gen1_train.data.loader import DataConfig
from gen1_train.data.schedule import Schedule
from gen1_train.errors import UserError
from gen1_train.system.console import progress

POLL = 0.2  # seconds between two checks for new shards

logger = logging.getLogger(__name__)


class Prefetching(Callback):
    """Runs a prefetcher in one process of each node; training starts when the shards of the first step have arrived."""

    def __init__(self, config: DataConfig, schedule: Schedule, start: int, stop: int) -> None:
        """`config`: names the source and the cache; the steps are start..stop-1."""
        self.config = config
        self.schedule = schedule
        self.start = start
        self.stop = stop
        self._prefetcher: Prefetcher | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_ranks(trainer.global_rank, trainer.node_rank, trainer.local_rank, trainer.num_devices)
        if trainer.local_rank != 0:
            return  # the other ranks wait in Lightning's barrier after setup
        assert self.config.root is not None
        needed = working_set(self.schedule, trainer.num_nodes) / 1e9
        if needed > self.config.cache_gigabytes:
            logger.warning(
                f"the windows of all pools take {needed:.3g} GB on a node, more than "
                f"data.cache_gigabytes={self.config.cache_gigabytes:g}: shards will be copied repeatedly; raise it, or "
                "lower data.window or data.lanes"
            )
        self._prefetcher = Prefetcher(
            self.config.root,
            self.schedule.shards,
            NodeShards(self.schedule, trainer.node_rank, trainer.num_nodes),
            self.start,
            self.stop,
            round(self.config.cache_gigabytes * 1e9),
            trainer.node_rank,
        )
        self._wait_for_first_step(self._prefetcher)

    def _wait_for_first_step(self, prefetcher: Prefetcher) -> None:
        """Waits for the shards of the first step; with a slow source this may exceed `data.stall_seconds`."""
        left = self._missing_bytes(prefetcher)
        with progress(title="first shards", unit="B", total=left, scale=True) as bar:
            while left:
                time.sleep(POLL)
                prefetcher.advance(self.start)  # raises when the prefetcher has ended
                before, left = left, self._missing_bytes(prefetcher)
                bar.update(before - left)

    def _missing_bytes(self, prefetcher: Prefetcher) -> int:
        return sum(shard.bytes for shard in prefetcher.missing(self.start))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._prefetcher is not None:
            self._prefetcher.advance(trainer.global_step)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()


def check_ranks(rank: int, node: int, local_rank: int, per_node: int) -> None:
    """Raises UserError unless ranks are numbered node by node: a cache would wait for the wrong shards."""
    if rank != node * per_node + local_rank:
        raise UserError(
            f"rank {rank} is process {local_rank} of node {node} with {per_node} processes: data.cache needs ranks "
            "that are numbered node by node; start them so (in Slurm --distribution=block), or omit data.cache"
        )
