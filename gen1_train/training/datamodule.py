"""The training batches, from the trainer's current step on."""

from collections.abc import Callable
from functools import partial

from pytorch_lightning import LightningDataModule
from typing_extensions import override

from gen1_train.batch import Batch
from gen1_train.data.loader import BatchDataset, BatchPartition, build_loader
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.data.watch import WatchedLoader
from gen1_train.errors import UserError
from gen1_train.training.callbacks.clock import Clock


class Gen1DataModule(LightningDataModule):
    """Loads training batches. Its state is the trainer's global step, so a resumed run repeats and skips nothing."""

    def __init__(
        self,
        shards: ShardSet,
        schedule: Schedule,
        fields: tuple[str, ...],
        finish: Callable[[Batch], Batch],
        level: Callable[[int, int], int],
        drops: Callable[[int, int], bool],
        steps: int,
        workers: int,
        stall_seconds: float,
        fail: Callable[[UserError], None],
        clock: Clock,
    ) -> None:
        """`finish`, `level` and `drops`: see BatchDataset; `clock` measures the waiting for data.

        `fail` is called from any thread if a loader worker dies or stalls.
        """
        super().__init__()
        self.shards = shards
        self.schedule = schedule
        self.fields = fields
        self.finish = finish
        self.level = level
        self.drops = drops
        self.steps = steps
        self.workers = workers
        self.stall_seconds = stall_seconds
        self.fail = fail
        self.waiting = partial(clock.phase, "data_wait")

    @override
    def train_dataloader(self) -> WatchedLoader:
        trainer = self.trainer
        assert trainer is not None
        partition = BatchPartition(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        dataset = BatchDataset(self.shards, self.schedule, partition, self.fields, self.finish, self.level, self.drops)
        pin = trainer.strategy.root_device.type == "cuda"
        start = trainer.global_step
        watching = self.stall_seconds, self.fail, self.waiting
        return build_loader(dataset, start, self.steps, self.workers, pin, *watching)
