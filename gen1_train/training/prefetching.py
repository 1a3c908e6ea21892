"""Keeps the cache of each node filled while it trains, see gen1_train.data.cache."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.data.cache import NodeNeeds, Prefetcher, working_set
from gen1_train.data.loader import DataConfig
from gen1_train.data.schedule import Schedule
from gen1_train.errors import UserError

POLL = 0.2  # seconds between two looks at what has come


class Prefetching(Callback):
    """One process of each node has a prefetcher; nobody trains before the first step's shards are there."""

    def __init__(self, config: DataConfig, schedule: Schedule, start: int, stop: int) -> None:
        """`config` says where from and to; the steps are start..stop-1."""
        self.config, self.schedule, self.start, self.stop = config, schedule, start, stop
        self._prefetcher: Prefetcher | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_ranks(trainer.global_rank, trainer.node_rank, trainer.local_rank, trainer.num_devices)
        if trainer.local_rank != 0:
            return  # the others wait in the barrier that Lightning has behind this
        assert self.config.root is not None
        wanted = working_set(self.schedule, trainer.num_nodes) / 1e9
        if trainer.is_global_zero and wanted > self.config.cache_gigabytes:
            print(
                f"gen1-train: warning: the windows of all pools take {wanted:.3g} GB on a node, more than "
                f"data.cache_gigabytes={self.config.cache_gigabytes:g}: shards will be copied again and again; raise "
                "it, or lower data.window or data.lanes",
                flush=True,
            )
        self._prefetcher = Prefetcher(
            self.config.root,
            self.schedule.shards,
            NodeNeeds(self.schedule, trainer.node_rank, trainer.num_nodes),
            self.start,
            self.stop,
            round(self.config.cache_gigabytes * 1e9),
            lambda line: print(f"gen1-train: node {trainer.node_rank}: {line}", flush=True),
        )
        self._fill(self._prefetcher, trainer.is_global_zero)

    def _fill(self, prefetcher: Prefetcher, show: bool) -> None:
        """Waits for the shards of the first step: from a slow source that may take longer than a worker may stall."""
        left = sum(shard.bytes for shard in prefetcher.missing(self.start))
        interval = 0.1 if sys.stderr.isatty() else 15.0
        with tqdm(
            total=left, desc="first shards", unit="B", unit_scale=True, mininterval=interval, disable=not show
        ) as bar:
            while left:
                time.sleep(POLL)
                prefetcher.advance(self.start)  # raises when nothing comes any more
                before, left = left, sum(shard.bytes for shard in prefetcher.missing(self.start))
                bar.update(before - left)

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
    """Raises UserError unless the ranks of a node lie side by side: else its cache would wait for the wrong shards."""
    if rank != node * per_node + local_rank:
        raise UserError(
            f"rank {rank} is process {local_rank} of node {node} with {per_node} processes: data.cache needs ranks "
            "that are numbered node by node; start them so (in Slurm --distribution=block), or leave data.cache out"
        )
