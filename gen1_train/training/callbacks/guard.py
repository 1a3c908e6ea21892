"""Guards the weights against a bad step: a gradient that is not finite, or much larger than those before.

Such a step is skipped (weights, AdamW's moments and averages do not change, and the next step reads the next data), or
it stops the run. It is recorded, so that `gen1-train replay=FILE` can run it again on one process:

RUN/guard/step-00001234/guard.json          step, reason, norms, the data's state, and the slot, key, loss and draws of
                                            every sample; all draws are keyed by (seed, step, slot)
                        config.yaml         the resolved config
                        unet.safetensors    the weights before the step; in the first records only

All ranks see the norm of the whole gradient and therefore decide the same. The statistics of earlier norms are in the
checkpoint, so a resumed run skips the same steps.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor
from typing_extensions import override

from gen1_train.errors import UserError, check_choice, check_not_negative, check_positive
from gen1_train.system.files import atomic_file, own_folder, patiently, write_atomically
from gen1_train.training.checkpoints import state
from gen1_train.training.checkpoints.checkpoint import CONFIG, UNET, CheckpointInfo
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.checkpoints.writing import write_weights
from gen1_train.training.module import Gen1Module, Observed

RECORD = "guard.json"

logger = logging.getLogger(__name__)


@dataclass
class GuardConfig:
    """All values are ours."""

    non_finite: str = "skip"  # for a gradient that is not finite: skip the step, or stop
    spike: str = "skip"  # for a gradient norm above the moving mean + sigmas deviations: skip, stop, or allow
    sigmas: float = 8.0  # deviations
    window: int = 200  # optimizer steps of the moving mean and deviation; the first ones are never spikes
    in_a_row: int = 10  # skipped steps after which the run stops
    records: int = 3  # recorded steps of a run that also keep the weights

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        check_choice("guard.non_finite", self.non_finite, ("skip", "stop"))
        check_choice("guard.spike", self.spike, ("skip", "stop", "allow"))
        check_positive(guard__sigmas=self.sigmas, guard__window=self.window, guard__in_a_row=self.in_a_row)
        check_not_negative(guard__records=self.records)


@dataclass
class Norms:
    """Moving mean and variance of the gradient norm. A step has weight 1/window; the first ones have equal weights."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, norm: float, window: int) -> None:
        self.count += 1
        share, delta = 1 / min(self.count, window), norm - self.mean
        self.mean += share * delta
        self.variance = (1 - share) * (self.variance + share * delta**2)

    def bound(self, config: GuardConfig) -> float:
        """Returns the norm above which a step is a spike."""
        known = config.spike != "allow" and self.count >= config.window
        return self.mean + config.sigmas * math.sqrt(self.variance) if known else math.inf


class Guard(Callback):
    """Checks the gradient of each optimizer step before the step is taken."""

    def __init__(
        self,
        *,
        config: GuardConfig,
        counters: Counters,
        run: Path,
        resolved: str,
        describe: Callable[[int], CheckpointInfo],
        on_gradient: Callable[[float, int], None],
        patience: float = 0.0,
    ) -> None:
        """`resolved`: the run's config as YAML; `describe`: see SaveCheckpoints.

        `patience`: seconds for which a full or unreachable disk is waited for.

        `on_gradient` gets every norm and the number of steps skipped so far.
        """
        self.config = config
        self.counters = counters
        self.run = run
        self.resolved = resolved
        self.describe = describe
        self.on_gradient = on_gradient
        self.patience = patience
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
        """Whether a step with this gradient norm is taken. Raises UserError if the run must stop. A collective."""
        bound = self.norms.bound(self.config)
        good = math.isfinite(norm) and norm <= bound
        self.counters.skipped += not good
        self.on_gradient(norm, self.counters.skipped)
        if good:
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
        record = self._record(step, norm, bound, reason)
        policy = self.config.spike if math.isfinite(norm) else self.config.non_finite
        description = f"step {step}: {reason}; recorded: gen1-train replay={record}"
        if policy == "stop":
            raise UserError(
                f"{description}; the step changed nothing, and the run can be resumed from its newest checkpoint"
            )
        if self.counters.in_a_row >= self.config.in_a_row:
            raise UserError(
                f"{description}; {self.counters.in_a_row} steps in a row were skipped: look at their records, lower "
                "optim.lr, or raise guard.sigmas"
            )
        logger.warning(f"{description}; the step is skipped")

    def _record(self, step: int, norm: float, bound: float, reason: str) -> Path:
        """Writes everything that is needed to run the step again, and returns the path. A collective."""
        trainer = self._trainer
        assert trainer is not None and isinstance(trainer.lightning_module, Gen1Module)
        module, folder = trainer.lightning_module, self.run / "guard" / f"step-{step:08d}"
        samples = all_gather_rows([row for observed in module.observed for row in rows(observed)])
        recorded = len(list(folder.parent.glob(f"*/{UNET}"))) if trainer.is_global_zero else 0
        (recorded,) = trainer.strategy.broadcast([recorded])
        weights: dict[str, Tensor] = {}
        if recorded < self.config.records:
            held = state.state_of(trainer.strategy)
            weights = held.gather(state.weights_of(module.unet), trainer.is_global_zero)
        if trainer.is_global_zero:
            content = {
                "step": step,
                "reason": reason,
                "norm": norm if math.isfinite(norm) else None,
                "bound": bound if math.isfinite(bound) else None,
                "norms": asdict(self.norms),
                "data": self.describe(step).data,
                "samples": sorted(samples, key=lambda row: row["slot"]),
            }
            write = partial(write_record, folder, json.dumps(content, indent=1), self.resolved, weights)
            patiently(write, f"the record of step {step} cannot be written to {folder}", self.patience)
        return folder / RECORD


def write_record(folder: Path, content: str, resolved: str, weights: dict[str, Tensor]) -> None:
    """Writes the record of a step; `content`: of RECORD, which is written last. `folder`: RUN/guard/step-….

    Raises OSError, and UserError if it is a link.
    """
    own_folder(folder.parents[1], folder.parent.name, folder.name)
    write_atomically(folder / CONFIG, resolved.encode())
    if weights:
        with atomic_file(folder / UNET) as temporary:
            write_weights(weights, temporary)
    write_atomically(folder / RECORD, content.encode())


def rows(observed: Observed) -> list[dict[str, Any]]:
    """Returns what a record holds of the samples of a micro-batch, one dict per sample."""
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


def all_gather_rows(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of all ranks. A collective."""
    if not torch.distributed.is_initialized():
        return own
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, own)
    return [row for rank in ranks for row in rank]


def judge_zero(strategy: Strategy, judge: Callable[[float], bool]) -> None:
    """Passes the gradient norms that ZeRO computes to `judge`; a refused step is skipped like an overflow."""
    zero = strategy.deepspeed_engine.optimizer  # type: ignore[attr-defined]
    refused = torch.tensor(-1.0)  # DeepSpeed's marker of an invalid norm

    def judged(norm: Tensor) -> Tensor:
        norm = norm.cpu()  # the only wait for the device in a step: what DeepSpeed asks of the norm is then on the host
        value = float(norm)
        return norm if judge(value if value >= 0 else math.nan) else refused.to(norm)

    if strategy.zero_stage_3:  # type: ignore[attr-defined]
        from deepspeed.runtime.utils import combine_grad_norm_groups

        groups = zero._get_norm_groups
        zero._get_norm_groups = lambda: [judged(combine_grad_norm_groups(groups()))]
    else:
        norm = zero.scaled_global_norm
        zero.scaled_global_norm = lambda *args, **kwargs: judged(norm(*args, **kwargs))
        zero.check_overflow = lambda *args, **kwargs: None  # would pass over all gradients to learn what the norm shows
