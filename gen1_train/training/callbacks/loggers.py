"""The loggers of a run: metrics.csv always, and W&B, which may be unreachable without harm."""

import logging
import os
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.reporting.rows import read_metrics
from gen1_train.system.files import read_regular, write_atomically
from gen1_train.system.names import plain_name
from gen1_train.system.signals import signals_blocked
from gen1_train.training.callbacks.metrics import MetricsCSV
from gen1_train.training.config import RunConfig
from gen1_train.training.stages import run_folder

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger(__name__)


def loggers(config: RunConfig, run: Path, resume_step: int) -> list[Logger]:
    """Returns metrics.csv, and W&B unless it is disabled. `resume_step`: the optimizer step that the run resumes from.

    Raises UserError if log.wandb=online and the user is not logged in.
    """
    chosen: list[Logger] = [MetricsCSV(run / "metrics.csv", resume_step, config.checkpoint.patience_seconds)]
    if config.log.wandb != "disabled":
        chosen.append(WandbRows(config, run, resume_step))
    return chosen


class WandbRows(Logger):
    """Sends the rows of metrics.csv to one W&B run (its id is in RUN/wandb.id), each row exactly once.

    A run that resumes first sends the rows that metrics.csv has and W&B does not have. Offline, W&B has none, so the
    folder of each start holds the whole run. Nothing here ends training or delays it for long: a server that does not
    answer is waited for `log.wandb_seconds` at the start, and again at the end.
    """

    def __init__(self, config: RunConfig, run: Path, resume_step: int) -> None:
        super().__init__()
        os.environ.setdefault("WANDB_SILENT", "true")
        # W&B's own error reports would delay the end of a run without internet access by half a minute
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.config = config
        self.run = run
        self.resume_step = resume_step
        self.online = _is_online(config.log.wandb)
        self._wandb: Run | None = None  # on rank 0, from the start to the end of training
        self._first = 0  # the first step that W&B does not have
        self._failed = False
        self._over = False

    @property
    @override
    def name(self) -> str:
        return f"{self.config.name}-{run_folder(self.config.tree, self.config.stage.name).name}"

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> "Run | None":
        """The W&B run, which Lightning asks for when the ranks have met; None on other ranks and after the end."""
        if self._wandb is None and not self._over:
            self._start()
        return self._wandb

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # the resolved config is sent at the start

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self._log(lambda: {name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_videos(self, step: int, videos: Mapping[str, Path]) -> None:
        """Logs MP4 files, by the names of their panels."""
        import wandb

        self._log(lambda: {name: wandb.Video(str(path), format="mp4") for name, path in videos.items()}, step)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends the remaining rows, for at most `log.wandb_seconds`, and prints where unsent files are."""
        if self._wandb is None:
            return
        run, self._wandb, self._over = self._wandb, None, True
        files = Path(run.dir).parent
        sent = self.online
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except Exception as error:
            sent = False
            logger.warning(f"W&B did not receive all rows: {_line(error)}")
            if isinstance(error, ConnectionError):  # the signal that stopped this process has ended W&B's process too
                _forget_service()
        if not sent:
            logger.info(f"the W&B files are in {files}: send them with `wandb sync {files}`")

    @rank_zero_only
    def _start(self) -> None:
        """Starts W&B, online if possible and else offline, and sends the rows of metrics.csv up to `resume_step`."""
        seconds = self.config.log.wandb_seconds
        try:
            self._wandb = self._init("online" if self.online else "offline")
        except Exception as error:
            logger.warning(f"W&B does not answer within {seconds:g} s, the run continues offline: {_line(error)}")
            self.online = False
            self._wandb = self._offline()
        if self._wandb is None:
            self._over = True
            return
        self._first = self._wandb.starting_step  # `step` is 0 until something is logged, even in a run that resumes
        for row in read_metrics(self.run / "metrics.csv"):
            if (step := int(row.pop("step"))) <= self.resume_step:
                self._log(partial(_numbers, row), step)

    def _init(self, mode: Literal["online", "offline"]) -> "Run":
        import wandb

        seconds = self.config.log.wandb_seconds
        with signals_blocked():  # keeps a time limit's SIGUSR1, but not SIGTERM, from ending W&B's process
            return wandb.init(
                project=self.config.log.project,
                name=self.name,
                id=self._identity(),
                dir=str(self.run),
                config=yaml.safe_load(self.config.to_yaml()),
                mode=mode,
                resume="allow",
                settings=wandb.Settings(init_timeout=seconds, finish_timeout=seconds, finish_timeout_raises=True),
            )

    def _offline(self) -> "Run | None":
        import wandb

        try:
            wandb.teardown()  # else the run that was refused blocks its own name
            return self._init("offline")
        except Exception as error:
            self._give_up(error)
            return None

    def _log(self, values: Callable[[], dict[str, Any]], step: int) -> None:
        """Logs values at a step. W&B merges all values of a step into one row, until a later step is logged."""
        if self._wandb is None or step < self._first:
            return
        try:
            self._wandb.log(values(), step=step)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Warns once; the next start sends the missing rows from metrics.csv."""
        if not self._failed:
            logger.warning(f"W&B does not accept rows, only metrics.csv gets them: {_line(error)}")
        self._failed = True

    def _identity(self) -> str:
        """Returns the run's id, which is created when the run is new."""
        file = self.run / "wandb.id"
        with suppress(OSError, ValueError):  # it becomes a part of W&B's paths
            return plain_name(read_regular(file, 100).decode())
        write_atomically(file, (identity := secrets.token_hex(4)).encode())
        return identity


def _forget_service() -> None:
    """Keeps W&B from contacting its ended process at exit, which would print a traceback."""
    import wandb

    with suppress(ConnectionError):
        wandb.teardown()


def _is_online(mode: str) -> bool:
    """Whether to contact W&B (`mode`: of log.wandb). Raises UserError for online without a login."""
    if mode == "offline":
        return False
    import wandb

    logged_in = wandb.login(prompt=False, verify=False)
    if mode == "online" and not logged_in:
        raise UserError("log.wandb=online needs a login: run `wandb login`, or set log.wandb=offline")
    return logged_in


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
