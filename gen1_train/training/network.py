"""What the modules that train one network share: the optimizer, its learning rates, and how checkpoints see them.

The learning rate is a plain function of the step's number. So a checkpoint holds nothing of a schedule, and a resumed
run has the rates of one that was never stopped.
"""

import fnmatch
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from gen1_train.errors import UserError, check_choice, check_not_negative, check_positive, check_share
from gen1_train.training.checkpoints.checkpoint import UNET
from gen1_train.training.checkpoints.state import trainable, updated_by
from gen1_train.training.strategies.sharded import ShardedStrategy

ADAMW8BIT = "adamw8bit"
OPTIMIZERS = ("adamw", ADAMW8BIT)
SCHEDULES = ("constant", "cosine")
MAX_SCALE = 1000  # of a learning rate; ours


@dataclass
class OptimConfig:
    """AdamW; all values are ours, the paper gives none."""

    name: str = "adamw"  # or adamw8bit: moments of 8 bits, a quarter of their memory; strategy=single or ddp
    lr: float = 1e-5  # after the warm-up
    lr_scales: list[str] = field(default_factory=list)  # factors of lr, as GLOB:FACTOR over the names of weights
    schedule: str = "constant"  # or cosine: from there down to final_lr_share of it at the stage's last step
    final_lr_share: float = 0.1  # schedule=cosine: share of lr at the last step
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of AdamW's moments
    weight_decay: float = 0.01  # of AdamW, on all weights that are trained
    warmup_steps: int = 500  # linear from 0
    clip_norm: float = 1.0  # of the whole gradient; 0 switches clipping off

    def check(self) -> None:
        """Raises UserError for an invalid setting."""
        check_choice("optim.name", self.name, OPTIMIZERS)
        check_choice("optim.schedule", self.schedule, SCHEDULES)
        check_positive(optim__lr=self.lr)
        check_share(optim__final_lr_share=self.final_lr_share)
        check_not_negative(optim__warmup_steps=self.warmup_steps)
        for scale in self.lr_scales:
            read_scale(scale)
        if len(self.betas) != 2:
            raise UserError(f"optim.betas={self.betas}: give two numbers")


class NetworkModule(LightningModule):
    """A module whose parameters are those of `network` and nothing else; a checkpoint stores them as `weights_file`."""

    weights_file = UNET

    @property
    def network(self) -> nn.Module:
        raise NotImplementedError

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # DeepSpeed clips and judges on its own. Lightning's clipping refuses a fused optimizer under autocast, because
        # of a loss scaler that bfloat16 does not have.
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            weights = updated_by(optimizer)
            norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
            if isinstance(self.trainer.strategy, ShardedStrategy):
                norm = self.trainer.strategy.whole_norm(norm)
            clip_grads_with_norm_(weights, gradient_clip_val or math.inf, norm)
            if not self.takes_step(float(norm)):
                optimizer.zero_grad(set_to_none=True)  # without gradients a step changes nothing

    def takes_step(self, norm: float) -> bool:
        """Whether the optimizer takes a step with this gradient norm (before clipping)."""
        return True

    def adamw(self, optim: OptimConfig, start: int, steps: int) -> Any:
        """Returns AdamW over the weights that are trained, for configure_optimizers.

        `start`: optimizer steps done, where the learning rate continues; `steps`: of the whole stage.
        """
        parameters = trainable(self.network)
        scales = scales_of(parameters, [read_scale(scale) for scale in optim.lr_scales])
        factors = [1.0, *sorted(set(scales.values()) - {1.0})]
        groups: list[dict[str, Any]] = [{"params": [], "lr": optim.lr * factor} for factor in factors]
        for name, parameter in parameters.items():
            groups[factors.index(scales[name])]["params"].append(parameter)
        optimizer = build_adamw(optim, [group for group in groups if group["params"]])
        rate = partial(
            rate_at,
            schedule=optim.schedule,
            warmup_steps=optim.warmup_steps,
            steps=steps,
            final_share=optim.final_lr_share,
        )
        scheduler = LambdaLR(optimizer, resumed_at(start, rate))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def build_adamw(optim: OptimConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """Returns the optimizer of these groups of weights. Raises UserError if a library for it is missing."""
    settings: dict[str, Any] = {"lr": optim.lr, "betas": tuple(optim.betas), "weight_decay": optim.weight_decay}
    if optim.name == ADAMW8BIT:
        from gen1_train.training.eight_bit import AdamW8bit

        return AdamW8bit(groups, **settings)
    return AdamW(groups, **settings, fused=True)


def read_scale(text: str) -> tuple[str, float]:
    """Parses GLOB:FACTOR. Raises UserError."""
    glob, _, factor = text.rpartition(":")
    try:
        scale = float(factor)
    except ValueError:
        scale = math.nan
    if not glob or not 0 < scale <= MAX_SCALE:
        raise UserError(
            f"optim.lr_scales has {text!r}: give GLOB:FACTOR, such as *temporal*:10, with a factor above 0, up to "
            f"{MAX_SCALE}"
        )
    return glob, scale


def check_globs(setting: str, globs: Iterable[str], names: Collection[str], weights: str = "weight") -> None:
    """Raises UserError for a glob of a setting that matches no name. `weights`: what has these names."""
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UserError(f"{setting} has {glob!r}, which matches no {weights}: give globs such as *temporal*")


def scales_of(names: Collection[str], scales: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Returns the factor of the learning rate for each weight: that of the first glob that matches its name, or 1.

    Raises UserError for a glob that matches none.
    """
    check_globs("optim.lr_scales", [glob for glob, _ in scales], names, "weight that is trained")
    return {name: next((scale for glob, scale in scales if fnmatch.fnmatchcase(name, glob)), 1.0) for name in names}


def warmup(step: int, steps: int) -> float:
    """Rises linearly over the first `steps` steps: 1 / steps at step 0, 1 from step `steps` - 1 on."""
    return min(1.0, (step + 1) / max(1, steps))


def cosine(step: int, first: int, last: int, final: float) -> float:
    """Follows half a cosine wave from 1 at step `first` to `final` at step `last`."""
    if step >= last:
        return final
    progress = max(0, step - first) / (last - first) if last > first else 0.0
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def rate_at(step: int, schedule: str, warmup_steps: int, steps: int, final_share: float) -> float:
    """Returns the share of optim.lr at a step (from 0) of a stage of `steps` steps: the warm-up, then the schedule.

    With `cosine`, the last step of the warm-up has the whole rate and the stage's last step `final_share` of it.
    """
    warm = warmup(step, warmup_steps)
    if schedule == "constant" or step < warmup_steps:
        return warm
    return cosine(step, max(0, warmup_steps - 1), steps - 1, final_share)


def resumed_at(start: int, rate: Callable[[int], float]) -> Callable[[int], float]:
    """Returns the same rates for a scheduler that counts from 0 again when a run resumes after `start` steps."""
    return lambda step: rate(start + step)
