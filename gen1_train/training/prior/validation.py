"""Validation of the prior: its embeddings for held-out texts, compared with two baselines that cost nothing.

All numbers are means over the held-out pairs, at fixed noise. `cosine` is the cosine to the true image embedding (of
the middle frame); `own` is the share of pairs whose own image is the closest of all held-out images.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from gen1_train.data.pairs import PairBatches, Pairs
from gen1_train.diffusion.prior import PriorSamplingConfig
from gen1_train.keyed import key
from gen1_train.training.callbacks.clock import Clock
from gen1_train.training.callbacks.measure import log_row
from gen1_train.training.checkpoints.counters import is_due
from gen1_train.training.checkpoints.state import state_of
from gen1_train.training.prior.module import PriorModule
from gen1_train.training.prior.sampling import in_parts

PART = 256  # pairs at a time: bounds memory
LOSSES = 8  # noise levels at which each held-out pair's loss is taken, on average

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """How close predicted embeddings are to the true ones."""

    cosine: float  # to the own image
    own: float  # share of pairs whose own image is the closest


def score(predicted: Tensor, images: Tensor) -> Score:
    """Compares predicted embeddings (p, d), of any length, with the true ones (p, d)."""
    match = normalize(predicted.float(), dim=-1) @ normalize(images.float(), dim=-1).T
    own = match.diagonal()
    return Score(float(own.mean()), float((match.argmax(1) == torch.arange(len(match))).float().mean()))


def baselines(training: Pairs, held_out: Pairs) -> dict[str, Score]:
    """Scores two baselines: the text embedding itself, and the mean of the training pairs' unit image embeddings."""
    mean = torch.stack([normalize(part.float(), dim=-1).sum(0) for part in training.frames.split(65536)]).sum(0)
    images = held_out.middle_frames()
    return {"text": score(held_out.texts, images), "mean_image": score(mean.expand(len(images), -1), images)}


class PriorValidation(Callback):
    """Logs val_x_loss, val_cosine and val_own of the weights and of the first average (…_ema), and the baselines'."""

    def __init__(
        self,
        every: int,
        training: Pairs,
        held_out: Pairs,
        sampling: PriorSamplingConfig,
        steps: int,
        average: str | None,
        clock: Clock,
    ) -> None:
        """`every`: optimizer steps between validations, of `steps` in all; `average`: a name in checkpoints.state."""
        self.every = every
        self.held_out = held_out
        self.sampling = sampling
        self.steps = steps
        self.averages = {"": None, **({"_ema": average} if average else {})}  # by the suffix of their columns
        self.clock = clock
        self.baselines = baselines(training, held_out)
        self._done = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PriorModule)
        if is_due(trainer.global_step, self._done, self.every, self.steps):
            self._done = trainer.global_step
            with self.clock.phase("validation"):
                row = self.row(trainer, pl_module)
            log_row(trainer, row)
            logger.info(self.line(trainer.global_step, row))

    def row(self, trainer: Trainer, module: PriorModule) -> dict[str, float]:
        """Returns the columns of one validation."""
        row: dict[str, float] = {}
        for name, baseline in self.baselines.items():
            row |= {f"val_cosine_{name}": baseline.cosine, f"val_own_{name}": baseline.own}
        for suffix, average in self.averages.items():
            with state_of(trainer.strategy).showing(average), trainer.precision_plugin.forward_context():
                predicted = in_parts(
                    module.prior, self.held_out.texts, validation_seed, module.schedule, self.sampling, PART
                )
                scored = score(predicted, self.held_out.middle_frames())
                row |= {f"val_cosine{suffix}": scored.cosine, f"val_own{suffix}": scored.own}
                row[f"val_x_loss{suffix}"] = self._loss(module)
        return row

    @torch.no_grad()
    def _loss(self, module: PriorModule) -> float:
        """Returns the training loss on held-out pairs, with text, at noise and timesteps that no run changes."""
        batches = PairBatches(self.held_out, key("validation"), min(PART, len(self.held_out)), module.timesteps, 0.0)
        rounds = -(-LOSSES * len(self.held_out) // batches.batch)
        total = 0.0
        for number in range(rounds):
            batch = {name: value.to(module.device) for name, value in batches[number].items()}
            total += float(module.losses(batch).mean())
        return total / rounds

    def line(self, step: int, row: dict[str, float]) -> str:
        """Summarizes a validation in one line."""
        suffix = list(self.averages)[-1]
        shares = [row[name] for name in (f"val_own{suffix}", "val_own_text")]
        return (
            f"step {step}, {len(self.held_out)} held-out pairs: cosine to the true image embedding "
            f"{row[f'val_cosine{suffix}']:.3f} (text embedding itself {row['val_cosine_text']:.3f}, mean image "
            f"{row['val_cosine_mean_image']:.3f}); closest to its own image {shares[0]:.0%} (text {shares[1]:.0%})"
        )


def validation_seed(number: int) -> int:
    """Returns the seed of the noise for a held-out pair, by its number."""
    return key("validation", number)
