"""Guards the weights against a bad step: a gradient that is not finite, or far longer than those before.

Such a step is left out (the weights, AdamW and the averages stay as they are, the data goes on) or stops the run. It is
recorded, so that `gen1-train replay=FILE` can run it again on one process:

RUN/guard/step-00001234/guard.json          step, reason, norms, the data's state, and of every sample slot, key, loss
                                            and draws, all of which are keyed by (seed, step, slot)
                        config.yaml         the resolved config
                        unet.safetensors    the weights that the step was taken with; of the first records only

All ranks see the same norm, that of the whole gradient, and so decide the same. What the guard knows of the norms
before stands in the checkpoint: a resumed run leaves out the same steps.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from gen1_train.training import state
from gen1_train.training.checkpoint import CONFIG, UNET, CheckpointInfo, write_weights
from gen1_train.training.counters import Counters
from gen1_train.training.module import Gen1Module, Observed

RECORD = "guard.json"


@dataclass
class GuardConfig:
    """All values are ours."""

    non_finite: str = "skip"  # a gradient that is not finite: skip the step, or stop
    spike: str = "skip"  # a gradient norm above the moving mean + sigmas deviations: skip, stop, or allow
    sigmas: float = 8.0  # deviations
    window: int = 200  # optimizer steps that mean and deviation look back on; no norm is a spike before so many
    in_a_row: int = 10  # skipped steps after which the run stops
    records: int = 3  # recorded steps of a run that keep the weights, too


@dataclass
class Norms:
    """Moving mean and variance of the gradient norm, each step weighing 1/window, the first ones equally."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, norm: float, window: int) -> None:
        self.count += 1
        share, delta = 1 / min(self.count, window), norm - self.mean
        self.mean += share * delta
        self.variance = (1 - share) * (self.variance + share * delta**2)

    def bound(self, config: GuardConfig) -> float:
        """The norm above which a step is a spike."""
        known = config.spike != "allow" and self.count >= config.window
        return self.mean + config.sigmas * math.sqrt(self.variance) if known else math.inf


class Guard(Callback):
    """Judges the gradient of each optimizer step before it is taken."""

    def __init__(
        self,
        config: GuardConfig,
        counters: Counters,
        run: Path,
        resolved: str,
        describe: Callable[[int], CheckpointInfo],
        say: Callable[[str], None],
        heard: Callable[[float, int], None],
    ) -> None:
        """`resolved`: the run's config as YAML; `describe`: see SaveCheckpoints.

        `heard` is told of every norm and of the steps skipped so far.
        """
        self.config, self.counters, self.run, self.resolved = config, counters, run, resolved
        self.describe, self.say, self.heard = describe, say, heard
        self.norms = Norms(**counters.norms)  # type: ignore[arg-type]
        self._trainer: Trainer | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Gen1Module)
        self._trainer = trainer
        pl_module.judge = self.judge
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            judge_zero(trainer.strategy, self.judge)

    def judge(self, norm: float) -> bool:
        """Whether a step with this gradient norm is taken. Raises UserError when the run is to stop. A collective."""
        bound = self.norms.bound(self.config)
        fine = math.isfinite(norm) and norm <= bound
        self.counters.skipped += not fine
        self.heard(norm, self.counters.skipped)
        if fine:
            self.counters.in_a_row = 0
            self.norms.add(norm, self.config.window)
            self.counters.norms = asdict(self.norms)
            self.counters.updates += 1
            return True
        self.counters.in_a_row += 1
        self._refuse(norm, bound)
        return False

    def _refuse(self, norm: float, bound: float) -> None:
        assert self._trainer is not None
        step = self._trainer.global_step
        reason = (
            f"gradient norm {norm:.4g} is above {bound:.4g}, the moving mean {self.norms.mean:.4g} + "
            f"{self.config.sigmas:g} deviations"
            if math.isfinite(norm)
            else "the gradient is not finite"
        )
        place = self._record(step, norm, bound, reason)
        way = self.config.spike if math.isfinite(norm) else self.config.non_finite
        told = f"step {step}: {reason}; recorded: gen1-train replay={place}"
        if way == "stop":
            raise UserError(f"{told}; nothing was changed by the step, the run goes on from its newest checkpoint")
        if self.counters.in_a_row >= self.config.in_a_row:
            raise UserError(
                f"{told}; {self.counters.in_a_row} steps in a row were skipped: look at their records, lower optim.lr, "
                "or raise guard.sigmas"
            )
        self.say(f"warning: {told}; the step is skipped")

    def _record(self, step: int, norm: float, bound: float, reason: str) -> Path:
        """Writes what is needed to run the step again; all ranks take part."""
        trainer = self._trainer
        assert trainer is not None and isinstance(trainer.lightning_module, Gen1Module)
        module, folder = trainer.lightning_module, self.run / "guard" / f"step-{step:08d}"
        samples = gathered([row for observed in module.observed for row in rows(observed)])
        recorded = len(list(folder.parent.glob(f"*/{UNET}"))) if trainer.is_global_zero else 0
        (recorded,) = trainer.strategy.broadcast([recorded])
        weights: dict[str, Tensor] = {}
        if recorded < self.config.records:
            held = state.state_of(trainer.strategy)
            weights = held.gather(state.weights_of(module.unet), trainer.is_global_zero)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(self.resolved)
            if weights:
                write_weights(weights, folder / UNET)
            content = {
                "step": step,
                "reason": reason,
                "norm": norm if math.isfinite(norm) else None,
                "bound": bound if math.isfinite(bound) else None,
                "norms": asdict(self.norms),
                "data": self.describe(step).data,
                "samples": sorted(samples, key=lambda row: row["slot"]),
            }
            write_atomically(folder / RECORD, json.dumps(content, indent=1).encode())
        return folder / RECORD


def rows(observed: Observed) -> list[dict[str, Any]]:
    """What is recorded of the samples of a micro-batch."""
    draws = observed.draws
    losses = [loss if math.isfinite(loss) else None for loss in observed.losses.tolist()]
    columns = {
        "slot": observed.slots,
        "key": observed.keys,
        "loss": losses,  # null where it is not finite
        "timestep": draws.timesteps.tolist(),
        "t_s": draws.levels.tolist(),
        "frame": draws.frames.tolist(),
        "dropped": draws.dropped.tolist(),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def gathered(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all ranks. A collective."""
    if not torch.distributed.is_initialized():
        return own
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return [row for rank in found for row in rank]


def judge_zero(strategy: Strategy, judge: Callable[[float], bool]) -> None:
    """Asks `judge` about the gradient norms that ZeRO computes; a step that it refuses is skipped like an overflow."""
    zero = strategy.deepspeed_engine.optimizer  # type: ignore[attr-defined]
    refused = torch.tensor(-1.0)  # DeepSpeed's mark of a norm that is not one

    def judged(norm: Tensor) -> Tensor:
        value = float(norm)
        return norm if judge(value if value >= 0 else math.nan) else refused.to(norm)

    if strategy.zero_stage_3:  # type: ignore[attr-defined]
        from deepspeed.runtime.utils import combine_grad_norm_groups

        groups = zero._get_norm_groups
        zero._get_norm_groups = lambda: [judged(combine_grad_norm_groups(groups()))]
    else:
        norm = zero.scaled_global_norm
        zero.scaled_global_norm = lambda *args, **kwargs: judged(norm(*args, **kwargs))
        zero.check_overflow = lambda *args, **kwargs: None  # a pass over all gradients for what the norm tells anyway
