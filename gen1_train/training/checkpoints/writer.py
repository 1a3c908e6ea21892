"""Writes one checkpoint at a time in a thread, and retries for a while when the disk is full or not reachable."""

import errno
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.distributed import DistError

from gen1_train.errors import UserError
from gen1_train.system.console import print_traceback
from gen1_train.system.files import patiently
from gen1_train.training.checkpoints import writing
from gen1_train.training.checkpoints.checkpoint import CheckpointConfig
from gen1_train.training.checkpoints.info import CheckpointInfo
from gen1_train.training.checkpoints.parts import BYTES, Piece, part_name, pieces_by_name, write_part
from gen1_train.training.checkpoints.reports import Reports

Files = dict[str, dict[str, Tensor]]  # file name -> tensors by name
Shapes = dict[str, dict[str, list[int]]]  # file name -> shapes of its tensors by name
Complete = Callable[[Files], Files]

Result = TypeVar("Result")
LATE = 60.0  # seconds for which rank 0 waits for other ranks longer than these wait for the disk

logger = logging.getLogger(__name__)


class Writer:
    """The thread. What it is given must not be changed until `wait` has returned."""

    def __init__(self, run: Path, config: CheckpointConfig, resolved: str, fail: Callable[[UserError], None]) -> None:
        """`resolved`: the run's config as YAML. `fail` is called, in the thread, if a checkpoint cannot be written."""
        self.run = run
        self.config = config
        self.resolved = resolved
        self.fail = fail
        self._thread: threading.Thread | None = None

    def write(self, tensors: Files, info: CheckpointInfo, complete: Complete | None, copied: float) -> None:
        """Starts writing a checkpoint of whole tensors. `complete` turns the files into those that are written, if
        they differ; `copied`: seconds that training waited for them."""

        def attempt(files: Files) -> None:
            temporary = writing.begin(self.run, info.step)
            try:
                needed = sum(BYTES * tensor.numel() for content in files.values() for tensor in content.values())
                check_space(temporary, needed)
                writing.commit(temporary, files, self.resolved, info, self.config)
            except OSError:
                writing.discard(temporary)
                raise

        def work() -> None:
            files = complete(tensors) if complete is not None else tensors
            self._patiently(lambda: attempt(files), info.step)

        self._start(work, info, copied)

    def write_parts(
        self,
        pieces: Mapping[str, Sequence[Piece]],
        shapes: Shapes,
        step: int,
        info: CheckpointInfo | None,
        unique: str,
        reports: Reports,
        copied: float,
    ) -> None:
        """Starts writing this process's part of a checkpoint; every rank must do so.

        `pieces`: of each file; `shapes`: of all tensors; `info`: on rank 0, which waits for all parts and publishes the
        checkpoint; `unique`: see writing.begin.
        """
        rank, world = reports.rank, reports.world
        total = sum(BYTES * math.prod(shape) for content in shapes.values() for shape in content.values())

        def attempt() -> tuple[Path, dict[str, dict[str, object]]]:
            temporary = writing.begin(self.run, step, unique, first=rank == 0)
            paths = {file: temporary / part_name(file, rank, world) for file in pieces}
            try:
                check_space(temporary, total - bytes_in(temporary))  # what all need, less what others have written
                return temporary, {path.name: write_part(path, pieces[file]) for file, path in paths.items()}
            except OSError:
                for path in paths.values():
                    path.unlink(missing_ok=True)
                raise

        def work() -> None:
            for file, content in pieces.items():
                writing.check_finite(file, {piece.name: piece.values for piece in content}, step)
            temporary, files = self._patiently(attempt, step)
            starts = {file: pieces_by_name(content) for file, content in pieces.items()}
            reports.send(temporary.name, {"files": files, "starts": starts})
            if info is None:
                return
            parts = reports.receive(temporary.name, self.config.patience_seconds + LATE)
            info.files = {name: file for part in parts for name, file in part["files"].items()}
            placed = [part["starts"] for part in parts]
            self._patiently(
                lambda: writing.commit_parts(temporary, shapes, placed, self.resolved, info, self.config), step
            )

        self._start(work, info, copied)

    def wait(self) -> None:
        """Returns when nothing is being written: at the latest after `patience_seconds` and the time of one write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, work: Callable[[], None], info: CheckpointInfo | None, copied: float) -> None:
        def run() -> None:
            began = time.perf_counter()
            try:
                work()
            except UserError as error:
                self.fail(error)
                return
            except DistError:  # rank 0, which has the store, is gone: RankFailure ends this process
                return
            except Exception as error:  # a bug; a run that continued would leave no more checkpoints
                print_traceback(type(error), error, error.__traceback__)
                what = f"no checkpoint can be written to {self.run}"
                self.fail(UserError(f"{what} ({type(error).__name__}: {error}): this is a bug, please report it"))
                return
            if info is not None:
                self._log(info, copied, time.perf_counter() - began)

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def _patiently(self, attempt: Callable[[], Result], step: int) -> Result:
        what = f"the checkpoint of step {step} cannot be written to {self.run}"
        return patiently(attempt, what, self.config.patience_seconds)

    def _log(self, info: CheckpointInfo, copied: float, written: float) -> None:
        size = sum(file["bytes"] for file in info.files.values()) / 1e9
        background = " in the background" if self.config.asynchronous else ""
        parts = f" in {info.parts} parts" if info.parts else ""
        logger.info(
            f"checkpoint of step {info.step}: {size:.3g} GB{parts}, gathered in {copied:.1f} s, written in "
            f"{written:.1f} s{background}"
        )


def bytes_in(folder: Path) -> int:
    """Returns the size of a folder's files, which other processes may be removing."""
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError if a disk has too little room, which is better than to fill it for all users."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"no {needed / 1e9:.3g} GB are free there")
