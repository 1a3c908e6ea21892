"""Where rows go: metrics.csv always, and W&B, which may be away without harm."""

import os
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from gen1_train.stop import deaf
from gen1_train.training.metrics import MetricsCSV, read_metrics
from gen1_train.training.prior_config import AnyTrainConfig
from gen1_train.training.stages import run_folder

if TYPE_CHECKING:
    from wandb import Run


def loggers(config: AnyTrainConfig, run: Path, resume_step: int, say: Callable[[str], None]) -> list[Logger]:
    """metrics.csv, and W&B unless it is disabled. `resume_step`: optimizer steps that the run goes on from.

    Raises UserError where W&B is to be online and the user is not logged in.
    """
    chosen: list[Logger] = [MetricsCSV(run / "metrics.csv", resume_step)]
    if config.log.wandb != "disabled":
        chosen.append(WandbRows(config, run, resume_step, say))
    return chosen


class WandbRows(Logger):
    """The rows of metrics.csv as one W&B run (its id is in RUN/wandb.id), each once and none left out.

    A run that goes on sends first what metrics.csv has and W&B has not, and nothing that W&B has already. Offline W&B
    has nothing, so the folder of each life holds the whole run. Nothing here ends or holds up training: a server that
    does not answer is waited for `log.wandb_seconds` at the start and as long at the end.
    """

    def __init__(self, config: AnyTrainConfig, run: Path, resume_step: int, say: Callable[[str], None]) -> None:
        super().__init__()
        os.environ.setdefault("WANDB_SILENT", "true")
        # its reports of its own errors would hold up the end of a run without internet for half a minute
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.config, self.run, self.resume_step, self.say = config, run, resume_step, say
        self.online = _is_online(config.log.wandb)
        self._wandb: Run | None = None  # in rank 0 from the start to the end of training
        self._first = 0  # the first step that W&B has not
        self._failed = self._over = False

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
        """What Lightning asks for when the ranks have met: W&B's run, None in other ranks and when it is over."""
        if self._wandb is None and not self._over:
            self._start()
        return self._wandb

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # the resolved config went with the start

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self._log(lambda: {name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_videos(self, step: int, videos: Mapping[str, Path]) -> None:
        """MP4 files by the names of their panels."""
        import wandb

        self._log(lambda: {name: wandb.Video(str(path), format="mp4") for name, path in videos.items()}, step)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what is left, for at most `log.wandb_seconds`, and says where the files are that were not sent."""
        if self._wandb is None:
            return
        run, self._wandb, self._over = self._wandb, None, True
        files = Path(run.dir).parent
        sent = self.online
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except Exception as error:
            sent = False
            self.say(f"warning: W&B has not got all: {_line(error)}")
            if isinstance(error, ConnectionError):  # its process has heard what stopped this one, and is gone
                _forget_service()
        if not sent:
            self.say(f"the W&B files are in {files}: `wandb sync {files}` sends them")

    @rank_zero_only
    def _start(self) -> None:
        """Online if that can be, else offline; then what is in metrics.csv up to here."""
        seconds = self.config.log.wandb_seconds
        try:
            self._wandb = self._init("online" if self.online else "offline")
        except Exception as error:
            self.say(f"warning: W&B does not answer within {seconds:g} s, this run goes on offline: {_line(error)}")
            self.online = False
            self._wandb = self._offline()
        if self._wandb is None:
            self._over = True
            return
        self._first = self._wandb.starting_step  # `step` is 0 until something is logged, also in a run that goes on
        for row in read_metrics(self.run / "metrics.csv"):
            if (step := int(row.pop("step"))) <= self.resume_step:
                self._log(partial(_numbers, row), step)

    def _init(self, mode: Literal["online", "offline"]) -> "Run":
        import wandb

        seconds = self.config.log.wandb_seconds
        with deaf():  # a time limit's SIGUSR1 does not end its process; SIGTERM does, whatever is blocked
            return wandb.init(
                project=self.config.log.project,
                name=self.name,
                id=self._identity(),
                dir=str(self.run),
                config=asdict(self.config),
                mode=mode,
                resume="allow",
                settings=wandb.Settings(init_timeout=seconds, finish_timeout=seconds, finish_timeout_raises=True),
            )

    def _offline(self) -> "Run | None":
        import wandb

        try:
            wandb.teardown()  # else the run that was not taken stands in the way of its own name
            return self._init("offline")
        except Exception as error:
            self._give_up(error)
            return None

    def _log(self, values: Callable[[], dict[str, Any]], step: int) -> None:
        """W&B closes a step when the next one comes: what is logged at one step is one row there, too."""
        if self._wandb is None or step < self._first:
            return
        try:
            self._wandb.log(values(), step=step)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Said once; the next life sends what is missing from metrics.csv."""
        if not self._failed:
            self.say(f"warning: W&B does not take what is logged, metrics.csv does: {_line(error)}")
        self._failed = True

    def _identity(self) -> str:
        """The run's id, made when the run is new."""
        file = self.run / "wandb.id"
        if not file.exists():
            write_atomically(file, secrets.token_hex(4).encode())
        return file.read_text()


def _forget_service() -> None:
    """Else W&B would say goodbye to its process when this one ends, and print a traceback over finding it gone."""
    import wandb

    with suppress(ConnectionError):
        wandb.teardown()


def _is_online(wanted: str) -> bool:
    """Whether W&B is to be asked at all. Raises UserError where the user wants what cannot be."""
    if wanted == "offline":
        return False
    import wandb

    logged_in = wandb.login(prompt=False, verify=False)
    if wanted == "online" and not logged_in:
        raise UserError("log.wandb=online, but nobody is logged in: run `wandb login`, or set log.wandb=offline")
    return logged_in


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
