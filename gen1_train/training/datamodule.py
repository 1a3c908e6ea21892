"""The training batches, from wherever the trainer stands."""

from collections.abc import Callable
from functools import partial

from pytorch_lightning import LightningDataModule
from typing_extensions import override

from gen1_train.data.loader import BatchDataset, Place, build_loader
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.data.watch import Watched
from gen1_train.errors import UserError
from gen1_train.training.clock import Clock


class Gen1DataModule(LightningDataModule):
    """The data state is the trainer's global step: a resume starts the sampler there and replays or skips nothing."""

    def __init__(
        self,
        shards: ShardSet,
        schedule: Schedule,
        fields: tuple[str, ...],
        steps: int,
        workers: int,
        stall_seconds: float,
        fail: Callable[[UserError], None],
        clock: Clock,
    ) -> None:
        """`fail` is told of a loader worker that died or stalled, from any thread; `clock` of the waiting for data."""
        super().__init__()
        self.shards, self.schedule, self.fields = shards, schedule, fields
        self.steps, self.workers, self.stall_seconds, self.fail = steps, workers, stall_seconds, fail
        self.waiting = partial(clock.phase, "data_wait")

    @override
    def train_dataloader(self) -> Watched:
        trainer = self.trainer
        assert trainer is not None
        place = Place(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        dataset = BatchDataset(self.shards, self.schedule, place, self.fields)
        pin = trainer.strategy.root_device.type == "cuda"
        start = trainer.global_step
        watching = self.stall_seconds, self.fail, self.waiting
        return build_loader(dataset, start, self.steps, self.workers, pin, *watching)
