"""A loss that is comparable between steps and runs: fixed clips, noise and timesteps, for the weights and the average.

The training loss of a single step is noisy, because it depends on the timesteps that were drawn. The validation loss
depends on the weights alone. All ranks take a share of the clips, and the random draws of training are not touched.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from gen1_train.batch import Batch, Sample, SampleError, collate
from gen1_train.data.loader import at_level
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError, check_not_negative, check_positive
from gen1_train.keyed import permutation
from gen1_train.system.console import EVERY_RANK
from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.callbacks.measure import log_row
from gen1_train.training.callbacks.tally import QUARTERS
from gen1_train.training.checkpoints.counters import is_due
from gen1_train.training.checkpoints.state import state_of
from gen1_train.training.draws import fixed_level
from gen1_train.training.module import Gen1Module

LOSS = "val_loss"  # the column for clips, or images in a stage without videos
SUBJECT_LOSS = "subject_loss"  # the column for held-out images of a subject

SampleId = tuple[str, int]  # pool, index in it

logger = logging.getLogger(__name__)


@dataclass
class ValidationConfig:
    """All values are ours."""

    root: str | None = None  # a shard set of clips that are not trained on; null: some clips of the training set
    every: int = 1000  # optimizer steps between two validation losses; the last step always has one; 0: none
    clips: int = 32  # clips for the loss (images in a stage without videos)
    edit_every: int = 5000  # optimizer steps between edits of validation clips; the last step always has some; 0: none
    edits: int = 2  # clips that are edited
    edit_steps: int = 20  # sampler steps of an edit
    omega: float = 4.0  # content guidance of the edits

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        check_positive(validation__clips=self.clips, validation__edit_steps=self.edit_steps)
        check_not_negative(
            validation__every=self.every, validation__edit_every=self.edit_every, validation__edits=self.edits
        )


def choose_samples(shards: ShardSet, kind: str, count: int) -> list[SampleId]:
    """Chooses the clips (or images) for validation, from all pools; the same ones in every run on a set."""
    pools = {name: pool.samples for name, pool in sorted(shards.manifest.pools.items()) if pool.kind == kind}
    total = sum(pools.values())
    samples: list[SampleId] = []
    for position in range(min(count, total)):
        index = permutation(total, "validation", kind)(position)
        for name, size in pools.items():
            if index < size:
                samples.append((name, index))
                break
            index -= size
    return samples


@dataclass(frozen=True)
class Turn:
    """The work of a rank in one of the rounds; all ranks do the same number of forward passes in a round."""

    number: int  # of the clip among the chosen ones
    sample: Sample
    counts: bool  # false: another rank has the clip too, or it could not be read and this is another clip


def read_turns(
    shards: ShardSet,
    samples: Sequence[SampleId],
    fields: tuple[str, ...],
    rank: int,
    world: int,
    level: Callable[[int], int] = lambda number: 0,
) -> list[Turn]:
    """Reads this rank's share into memory. Raises UserError when none of it can be read.

    `level`: the t_s at which the structure's latent is read of the clip with this number.
    """
    share: list[tuple[int, Sample | None, bool]] = []
    for start in range(0, len(samples), world):
        number = (start + rank) % len(samples)
        pool, index = samples[number]
        try:
            sample = shards.read(pool, index, at_level(fields, level(number)))
        except SampleError as error:
            logger.warning(f"validation skips a sample of {pool}: {error}", extra=EVERY_RANK)
            sample = None
        share.append((number, sample, start + rank < len(samples)))
    readable = next(((number, sample) for number, sample, _ in share if sample is not None), None)
    if readable is None:
        raise UserError(
            f"no validation sample of {shards.root} can be read: copy the set again, or set validation.every=0"
        )
    return [
        Turn(number, sample, counts) if sample is not None else Turn(*readable, counts=False)
        for number, sample, counts in share
    ]


class Validation(Callback):
    """Logs val_loss (weights) and val_loss_ema (first average), in total and per quarter of the timesteps."""

    def __init__(
        self,
        *,
        config: ValidationConfig,
        shards: ShardSet,
        kind: str,
        steps: int,
        average: str | None,
        clock: Clock,
        name: str = LOSS,
        observer: Callable[[dict[str, float], int], dict[str, float]] | None = None,
    ) -> None:
        """Args:
        kind: of the samples, video or image.
        steps: of the stage.
        average: the name of the first average, see ema.name_of; None if there is none.
        name: the column of the weights' loss.
        observer: gets every row and its step, also before the first step, and returns further columns.
        """
        self.config = config
        self.shards = shards
        self.kind = kind
        self.steps = steps
        self.clock = clock
        self.columns = {name: None, **({f"{name}_ema": average} if average else {})}  # column -> average
        self.observer = observer
        self._turns: list[Turn] = []
        self._done = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        self._done = trainer.global_step
        samples = choose_samples(self.shards, self.kind, self.config.clips)
        stage, level = pl_module.stage, partial(fixed_level, pl_module.drawing.max_level)
        self._turns = read_turns(self.shards, samples, stage.fields, trainer.global_rank, trainer.world_size, level)
        if self.observer is not None and trainer.global_step == 0:
            self._validate(trainer)  # the baseline of later ones

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
        if self.observer is not None:
            row |= self.observer(row, trainer.global_step)
        log_row(trainer, row)

    @torch.no_grad()
    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Returns the columns of a row. A collective."""
        row: dict[str, float] = {}
        for name, average in self.columns.items():
            sums = torch.zeros(QUARTERS + 1, dtype=torch.float64)  # losses of the quarters, and the number of clips
            with state_of(trainer.strategy).showing(average):
                for turn in self._turns:
                    losses = self._losses_of(trainer, turn)  # even if it does not count: ZeRO-3 needs all ranks
                    if turn.counts:
                        sums[:QUARTERS] += losses.cpu()
                        sums[QUARTERS] += 1
            *quarters, clips = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum").tolist()
            row[name] = sum(quarters) / QUARTERS / clips
            if name.startswith(LOSS):
                row |= {f"{name}_t{i + 1}": loss / clips for i, loss in enumerate(quarters)}
        return row

    def _losses_of(self, trainer: Trainer, turn: Turn) -> Tensor:
        batch = collate(self.kind, turn.number, list(range(QUARTERS)), [turn.sample] * QUARTERS)
        observed: Any = trainer.strategy.validation_step(batch.to(trainer.strategy.root_device))
        return observed.losses.double()
