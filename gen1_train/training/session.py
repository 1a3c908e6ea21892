"""The frame of a run, whatever it trains: what the stages and the prior share around Lightning's fit."""

import logging
import threading
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities import rank_zero_only

from gen1_train.errors import STOPPED
from gen1_train.system.device import set_determinism, set_tf32
from gen1_train.system.files import is_waiting
from gen1_train.system.processes import ranks_end_with_this_process
from gen1_train.system.signals import STOP
from gen1_train.training.callbacks.clock import Clock, Phase
from gen1_train.training.callbacks.loggers import loggers
from gen1_train.training.callbacks.profiling import profiling
from gen1_train.training.callbacks.saving import Averaging, RestoreState, SaveCheckpoints, initial_counters
from gen1_train.training.callbacks.stopping import Stopping
from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.checkpoints.resuming import Claim, claimed, to_resume
from gen1_train.training.checkpoints.writer import Complete
from gen1_train.training.config import RunConfig, TrainerConfig
from gen1_train.training.failures.deadline import Deadline
from gen1_train.training.failures.health import HealthCheck
from gen1_train.training.failures.rank_failure import RankFailure
from gen1_train.training.run_files import is_finished

PAUSES: tuple[Phase, ...] = ("data_wait", "checkpoint", "validation")  # their waits have limits of their own
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """One start of a run: where it is, how far it has come, and what its callbacks share."""

    config: RunConfig
    title: str  # of the run in messages: "stage 4", "the prior"
    run: Path  # the run folder
    start: int  # optimizer steps that are done
    source: checkpoint.Checkpoint | None  # whose state the run continues with
    keeps: Collection[str]  # what it takes from there besides weights, see stages.RESETS
    clock: Clock
    counters: Counters
    failure: RankFailure
    stopping: Stopping

    @classmethod
    def open(
        cls,
        config: RunConfig,
        title: str,
        run: Path,
        resume: checkpoint.Checkpoint | None,
        source: checkpoint.Checkpoint | None,
        keeps: Collection[str],
    ) -> "Session":
        """`resume`: the run's own checkpoint, if any; `source`: that one, or the one that a new run starts from."""
        before = (None, resume.path if resume else None)  # damaged ones of later steps are moved aside
        clock = Clock()
        return cls(
            config=config,
            title=title,
            run=run,
            start=resume.info.step if resume else 0,
            source=source,
            keeps=keeps,
            clock=clock,
            counters=initial_counters(source, keeps, config.ema.decays, resumed=resume is not None),
            failure=RankFailure(
                lambda: checkpoint.newest(run) not in before, step_deadline(config.trainer, clock), run
            ),
            stopping=Stopping(STOP),
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.stage.steps

    def callbacks(
        self,
        *,
        first: Iterable[Callback] = (),
        guarding: Iterable[Callback] = (),
        measuring: Iterable[Callback] = (),
        describe: Callable[[int], checkpoint.CheckpointInfo],
        complete: Complete | None = None,
    ) -> list[Callback]:
        """Returns the callbacks of the run in the order in which they have to act.

        `first`: before any state is restored; `guarding`: between that and the averages; `measuring`: before the run
        may stop and a checkpoint is written. `describe`, `complete`: see SaveCheckpoints.
        """
        decays = self.config.ema.decays
        saving = SaveCheckpoints(
            run=self.run,
            config=self.config.checkpoint,
            steps=self.steps,
            counters=self.counters,
            resolved=self.config.to_yaml(),
            describe=describe,
            fail=self.failure.fail,
            clock=self.clock,
            complete=complete,
        )
        return [
            self.failure,
            *first,
            HealthCheck(self.config.trainer.health),
            RestoreState(
                counters=self.counters,
                averages=self.config.ema,
                source=self.source,
                step=self.start,
                keeps=self.keeps,
            ),
            *guarding,
            Averaging(self.counters, decays, self.clock),
            *measuring,
            *profiling(self.run, self.config.trainer.profile),
            self.stopping,
            saving,
        ]

    def fit(self, trainer: Trainer, module: LightningModule, **data: Any) -> int:
        """Trains; returns the exit code: 0, or STOPPED if a signal asked the run to stop before its last step."""
        waiting = self.failure.awaiting_ranks(trainer.world_size, self.config.trainer.rendezvous_seconds)
        try:
            with ranks_end_with_this_process(), waiting:
                trainer.fit(module, **data)
        except SystemExit as error:  # Lightning's way to end after a KeyboardInterrupt, with exit code 1
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        newest = checkpoint.newest(self.run)
        if self.stopping.at is not None and self.stopping.at < self.steps:
            logger.info(f"{self.title} was stopped after step {self.stopping.at}: {newest}; call again to resume")
            return STOPPED
        logger.info(f"{self.title} is finished: {newest}")
        return 0

    def trainer(self, callbacks: list[Callback], processes: int = 1, strategy: Strategy | str = "auto") -> Trainer:
        """Returns Lightning's Trainer with the project's loggers and callbacks instead of Lightning's own."""
        config = self.config
        silence_libraries()
        set_switches(config.trainer)
        return Trainer(
            accelerator=config.trainer.accelerator,
            devices=processes,
            num_nodes=config.trainer.nodes,
            strategy=strategy,
            precision=config.trainer.precision,  # type: ignore[arg-type]
            max_steps=self.steps,
            max_epochs=-1,
            accumulate_grad_batches=config.trainer.accumulate,
            gradient_clip_val=config.optim.clip_norm or None,
            logger=loggers(config, self.run, self.start),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


def step_deadline(config: TrainerConfig, clock: Clock) -> Deadline:
    """Returns the deadline of the steps, which does not run while the main thread is in one of PAUSES."""
    main = threading.current_thread()
    return Deadline(
        config.step_deadline,
        config.step_deadline_seconds,
        is_pausing=lambda: clock.current in PAUSES or is_waiting(main),
    )


def unless_finished(
    config: RunConfig,
    title: str,
    run: Path,
    work: Callable[[Claim], int],
    *,
    rank_zero: bool,
    before: Callable[[], object] = lambda: None,
    verify: checkpoint.Verify = checkpoint.Checkpoint.verify,
) -> int:
    """Calls `work` while no other process may write to the run folder, unless the run has done all of its steps.

    With config.check_only, `work` writes nothing, and the folder is not claimed. `before` is called before the claim.
    Returns the exit code of `work`, or 0. Raises UserError.
    """
    known = checkpoint.newest(run)
    resume = to_resume(run, config.restart, verify)
    if is_finished(title, resume, config):
        return 0
    before()
    if config.check_only:
        return work(Claim(resume))
    patience = config.checkpoint.patience_seconds
    claim = claimed(run, resume, known=known, restart=config.restart, patience=patience, is_rank_zero=rank_zero)
    with claim as held:
        if held.resume is not resume and is_finished(title, held.resume, config):  # by another run, in the meantime
            return 0
        return work(held)


def is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def set_switches(config: TrainerConfig) -> None:
    """Sets torch's process-wide switches for GPUs; they have no effect on CPUs."""
    set_tf32(config.tf32)
    set_determinism(config.deterministic, config.cudnn_benchmark)


def silence_libraries() -> None:
    """Silences what Lightning and DeepSpeed print at every start although no user can act on it."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*persistent_workers.*")
    warnings.filterwarnings("ignore", ".*You defined a `validation_step` but have no `val_dataloader`.*")
    warnings.filterwarnings("ignore", ".*configure_gradient_clipping.*")
    # of convolutions of one pixel, whose gradients have other strides for the same order in memory
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # rows are written by callbacks.measure
    warnings.filterwarnings("ignore", ".*srun. command is available.*")  # torchrun works on a cluster, too
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
