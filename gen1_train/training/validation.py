"""A loss that can be compared between steps and runs: fixed clips, fixed noise, fixed timesteps; weights and average.

The training loss of a step says little: it jumps with the timesteps that were drawn. This one moves with the weights
alone. All ranks take their share of the clips, and nothing that training draws is touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.batch import Batch, Sample, SampleError, collate
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import permutation
from gen1_train.training.clock import Clock
from gen1_train.training.counters import is_due
from gen1_train.training.module import Gen1Module
from gen1_train.training.state import state_of
from gen1_train.training.tally import QUARTERS


@dataclass
class ValidationConfig:
    """All values are ours."""

    root: str | None = None  # a shard set of clips that are not trained on; null: some of the training set's
    every: int = 1000  # optimizer steps between two validation losses; the last step always has one; 0: none
    clips: int = 32  # that the loss is made of (images in a stage without videos)
    edit_every: int = 5000  # optimizer steps between edits of validation clips; the last step always has some; 0: none
    edits: int = 2  # clips that are edited
    edit_steps: int = 20  # of the sampler
    omega: float = 4.0  # of the edits, content


LOSS, SUBJECT_LOSS = "val_loss", "subject_loss"  # columns: of clips (or images), of held-out images of a subject

Place = tuple[str, int]  # pool, index in it


def chosen(shards: ShardSet, kind: str, count: int) -> list[Place]:
    """The clips (or images) of validation: of a set the same ones in any run, from all its pools."""
    pools = {name: pool.samples for name, pool in sorted(shards.manifest.pools.items()) if pool.kind == kind}
    total = sum(pools.values())
    places = []
    for position in range(min(count, total)):
        index = permutation(total, "validation", kind)(position)
        for name, samples in pools.items():
            if index < samples:
                places.append((name, index))
                break
            index -= samples
    return places


@dataclass(frozen=True)
class Turn:
    """What a rank does in one of the rounds in which all do the same number of forward passes."""

    number: int  # of the clip among those chosen
    sample: Sample
    counts: bool  # false: another rank has it, too, or it could not be read and another stands here


def turns(shards: ShardSet, places: Sequence[Place], fields: tuple[str, ...], rank: int, world: int) -> list[Turn]:
    """This rank's share, read into memory. Raises UserError when nothing of it can be read."""
    found: list[tuple[int, Sample | None, bool]] = []
    for start in range(0, len(places), world):
        number = (start + rank) % len(places)
        try:
            sample = shards.read(*places[number], fields)
        except SampleError as error:
            print(f"gen1-train: warning: validation goes without a sample of {places[number][0]}: {error}", flush=True)
            sample = None
        found.append((number, sample, start + rank < len(places)))
    good = next((sample for _, sample, _ in found if sample is not None), None)
    if good is None:
        raise UserError(f"no validation sample of {shards.root} can be read: copy it again, or set validation.every=0")
    return [Turn(number, sample or good, counts and sample is not None) for number, sample, counts in found]


class Validation(Callback):
    """Logs val_loss (weights) and val_loss_ema (first average), as a whole and by quarter of the timesteps."""

    def __init__(
        self,
        config: ValidationConfig,
        shards: ShardSet,
        kind: str,
        steps: int,
        average: str | None,
        clock: Clock,
        name: str = LOSS,
        heard: Callable[[dict[str, float], int], dict[str, float]] | None = None,
    ) -> None:
        """`kind` of the samples, video or image; the stage has `steps`; `average` is its name in training.state.

        `name` of the column of the weights' loss. `heard`, if given, is told of every row and its step, also before the
        first step, and gives what is logged beside it.
        """
        self.config, self.shards, self.kind, self.steps, self.clock = config, shards, kind, steps, clock
        self.shown = {name: None, **({f"{name}_ema": average} if average else {})}
        self.heard = heard
        self._turns: list[Turn] = []
        self._done = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        self._done = trainer.global_step
        places = chosen(self.shards, self.kind, self.config.clips)
        self._turns = turns(self.shards, places, pl_module.fields, trainer.global_rank, trainer.world_size)
        if self.heard is not None and trainer.global_step == 0:
            self._validate(trainer)  # what the later ones are compared with

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if is_due(trainer.global_step, self._done, self.config.every, self.steps):
            self._done = trainer.global_step
            self._validate(trainer)

    def _validate(self, trainer: Trainer) -> None:
        with self.clock.phase("validation"):
            row = self.losses(trainer)
        if self.heard is not None:
            row |= self.heard(row, trainer.global_step)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    @torch.no_grad()
    def losses(self, trainer: Trainer) -> dict[str, float]:
        """The row. A collective."""
        row: dict[str, float] = {}
        for name, average in self.shown.items():
            sums = torch.zeros(QUARTERS + 1, dtype=torch.float64)  # of the quarters; clips
            with state_of(trainer.strategy).showing(average):
                for turn in self._turns:
                    losses = self._one(trainer, turn)  # also where it does not count: ZeRO-3 needs all ranks
                    if turn.counts:
                        sums[:QUARTERS] += losses.cpu()
                        sums[QUARTERS] += 1
            *quarters, clips = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum").tolist()
            row[name] = sum(quarters) / QUARTERS / clips
            if name.startswith(LOSS):
                row |= {f"{name}_t{i + 1}": loss / clips for i, loss in enumerate(quarters)}
        return row

    def _one(self, trainer: Trainer, turn: Turn) -> Tensor:
        batch = collate(self.kind, turn.number, list(range(QUARTERS)), [turn.sample] * QUARTERS)
        observed: Any = trainer.strategy.validation_step(batch.to(trainer.strategy.root_device))
        return observed.losses.double()
