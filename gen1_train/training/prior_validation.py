"""Does the prior beat what costs nothing? Its embeddings for held-out texts, against two baselines.

All numbers are means over the held-out pairs, at fixed noise. `cosine` is that to the true image embedding (of the
middle frame), `own` the share of pairs whose own image is the closest of all held-out images.
"""

from collections.abc import Callable
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
from gen1_train.training.clock import Clock
from gen1_train.training.counters import is_due
from gen1_train.training.prior_module import PriorModule
from gen1_train.training.prior_sampling import in_parts
from gen1_train.training.state import state_of

PART = 256  # pairs at a time: bounds memory
LOSSES = 8  # noise levels at which each held-out pair's loss is taken, on average


@dataclass(frozen=True)
class Score:
    """How close made embeddings are to the true ones."""

    cosine: float  # to the own image
    own: float  # share of pairs whose own image is the closest


def score(made: Tensor, images: Tensor) -> Score:
    """Embeddings (p, d) of any length for p pairs, and the true ones (p, d)."""
    match = normalize(made.float(), dim=-1) @ normalize(images.float(), dim=-1).T
    own = match.diagonal()
    return Score(float(own.mean()), float((match.argmax(1) == torch.arange(len(match))).float().mean()))


def baselines(training: Pairs, held_out: Pairs) -> dict[str, Score]:
    """What needs no prior: the text embedding itself, and the mean (of unit) image embeddings of the training pairs."""
    mean = normalize(training.frames.float(), dim=-1).mean(0)
    images = held_out.middle_frames()
    return {"text": score(held_out.texts, images), "mean_image": score(mean.expand(len(images), -1), images)}


class PriorValidation(Callback):
    """Logs val_loss, val_cosine and val_own of the weights and of the first average (…_ema), and the baselines'."""

    def __init__(
        self,
        every: int,
        training: Pairs,
        held_out: Pairs,
        sampling: PriorSamplingConfig,
        steps: int,
        average: str | None,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        """The stage has `steps`; `average` is its name in training.state."""
        self.every, self.held_out, self.sampling, self.steps = every, held_out, sampling, steps
        self.shown = {"": None, **({"_ema": average} if average else {})}
        self.clock, self.say, self.baselines = clock, say, baselines(training, held_out)
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
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step)
            self.say(self.line(trainer.global_step, row))

    def row(self, trainer: Trainer, module: PriorModule) -> dict[str, float]:
        """All that is logged at one step."""
        row: dict[str, float] = {}
        for name, found in self.baselines.items():
            row |= {f"val_cosine_{name}": found.cosine, f"val_own_{name}": found.own}
        for suffix, average in self.shown.items():
            with state_of(trainer.strategy).showing(average), trainer.precision_plugin.forward_context():
                made = in_parts(
                    module.prior, self.held_out.texts, validation_seed, module.schedule, self.sampling, PART
                )
                found = score(made, self.held_out.middle_frames())
                row |= {f"val_cosine{suffix}": found.cosine, f"val_own{suffix}": found.own}
                row[f"val_loss{suffix}"] = self._loss(module)
        return row

    @torch.no_grad()
    def _loss(self, module: PriorModule) -> float:
        """The training loss on held-out pairs, with text, at noise and timesteps that are the same in every run."""
        batches = PairBatches(self.held_out, key("validation"), min(PART, len(self.held_out)), module.timesteps, 0.0)
        rounds = -(-LOSSES * len(self.held_out) // batches.batch)
        total = 0.0
        for number in range(rounds):
            batch = {name: value.to(module.device) for name, value in batches[number].items()}
            total += float(module.losses(batch).mean())
        return total / rounds

    def line(self, step: int, row: dict[str, float]) -> str:
        """What a user wants to know, in one line."""
        suffix = list(self.shown)[-1]
        shares = [row[name] for name in (f"val_own{suffix}", "val_own_text")]
        return (
            f"step {step}, {len(self.held_out)} held-out pairs: cosine to the true image embedding "
            f"{row[f'val_cosine{suffix}']:.3f} (text embedding itself {row['val_cosine_text']:.3f}, mean image "
            f"{row['val_cosine_mean_image']:.3f}); closest to its own image {shares[0]:.0%} (text {shares[1]:.0%})"
        )


def validation_seed(number: int) -> int:
    """Of the noise for a held-out pair, by its number."""
    return key("validation", number)
