"""The training batches, from wherever the trainer stands."""

from pytorch_lightning import LightningDataModule
from typing_extensions import override

from gen1_train.data.loader import BatchDataset, Place, build_loader
from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.data.watch import Watched


class Gen1DataModule(LightningDataModule):
    """The data state is the trainer's global step: a resume starts the sampler there and replays or skips nothing."""

    def __init__(self, shards: ShardSet, schedule: Schedule, fields: tuple[str, ...], steps: int, workers: int) -> None:
        super().__init__()
        self.shards, self.schedule, self.fields = shards, schedule, fields
        self.steps, self.workers = steps, workers

    @override
    def train_dataloader(self) -> Watched:
        trainer = self.trainer
        assert trainer is not None
        place = Place(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        dataset = BatchDataset(self.shards, self.schedule, place, self.fields)
        pin = trainer.strategy.root_device.type == "cuda"
        return build_loader(dataset, trainer.global_step, self.steps, self.workers, pin)
