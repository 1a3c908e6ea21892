"""What a start of a run does about the checkpoints that are there: no start loses steps that were done."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gen1_train.errors import UserError
from gen1_train.system.files import patiently, read_regular, refuse_link
from gen1_train.system.locks import LOCK, Lock
from gen1_train.system.processes import leave_with
from gen1_train.system.records import parse_json
from gen1_train.training.checkpoints.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    Verify,
    checkpoints_dir,
    latest,
    newest,
)
from gen1_train.training.checkpoints.info import STEP

STARTS = "starts.jsonl"  # in a run folder: a line for each start of the run
BEFORE = "before-restart"  # folders in a run's with what restart=true moved there
DAMAGED = "damaged"  # names of checkpoints that were found damaged begin with it
STAYS = (LOCK, "images")  # in the run folder at a restart: the images of a subject are those of this start

# folders and files in a run's that are written to, other than by replacing them as a whole
OWN = (CHECKPOINTS, STARTS, LOCK, "metrics.csv", "guard", "samples", "images", "wandb")
MAX_STARTS = 1 << 28  # bytes of STARTS: half a million starts; ours

logger = logging.getLogger(__name__)


def to_resume(run: Path, restart: bool, verify: Verify = Checkpoint.verify) -> Checkpoint | None:
    """Returns the newest intact checkpoint of a run; None for a new run, or for one that `restart` starts over.

    `verify`: see verification.py.

    Raises UserError if steps were done and no intact checkpoint has them: a start at step 0 would replace them. Raises
    it also for a link in the folder, through which the run would write and remove files elsewhere.
    """
    for name in OWN:
        refuse_link(run / name)
    checkpoint = latest(run, verify=verify)
    if checkpoint is not None:
        if restart:
            logger.warning(
                f"restart=true is for a run without an intact checkpoint, this one resumes from {checkpoint.path}: "
                "name= starts another run"
            )
        return checkpoint
    if (steps := steps_done(run)) and not restart:
        raise UserError(
            f"{run} has done {steps} steps or more, and none of its checkpoints is intact: put a copy of one back into "
            f"{checkpoints_dir(run)}, or start at step 0 with restart=true, which moves all files to {BEFORE}-1 there"
        )
    return None


@dataclass
class Claim:
    """A run folder that no other run writes to as long as the claim is open."""

    resume: Checkpoint | None  # see `to_resume`
    lock: Lock | None = None  # on rank 0

    def on_loss(self, fail: Callable[[UserError], None]) -> None:
        """Sets what ends all ranks if another run has taken the folder over, because this one was suspended."""
        if self.lock is not None:
            self.lock.on_loss = fail


@contextmanager
def claimed(
    run: Path, resume: Checkpoint | None, *, known: Path | None, restart: bool, patience: float, is_rank_zero: bool
) -> Iterator[Claim]:
    """Holds the lock of a run folder, on rank 0, for the length of a block; before it, nothing may be written there.

    `resume`: what `to_resume` returned before; it is looked up again if the newest checkpoint is no longer the `known`
    one of that time. `patience`: seconds for which a full or unreachable disk is waited for. Raises UserError if
    another run uses the folder.
    """
    if not is_rank_zero:
        yield Claim(resume)
        return
    lock = Lock(run, "stop it, or choose another name=", leave_with)
    try:
        patiently(lock.take, f"{run} cannot be written to", patience)
        if newest(run) != known:
            resume = to_resume(run, restart)
        yield Claim(resume, lock)
    finally:
        lock.release()


def steps_done(run: Path) -> int:
    """Returns the optimizer steps that a run has saved at some time, going by its folders' names and its starts.

    Steps since the last checkpoint do not count, because every kill loses those.
    """
    steps = [0, *map(_step, checkpoints_dir(run).glob("step-*"))]
    with suppress(OSError):
        for line in read_regular(run / STARTS, MAX_STARTS).splitlines():
            with suppress(ValueError, OverflowError, TypeError, KeyError):  # torn by a kill
                steps.append(int(parse_json(line)["step"]))
    return max(steps)


def make_way(run: Path, step: int) -> None:
    """Moves aside what a start at `step` would mix with its own files. Only the holder of the run's lock may call it.

    At step 0 that is everything that an earlier start left after it had saved steps (see `to_resume`). At other steps
    it is the checkpoints of later steps, which are damaged, or this start would resume from them. Raises OSError.
    """
    if step == 0:
        if steps_done(run):
            move_aside(run)
        return
    for path in sorted(checkpoints_dir(run).glob("step-*")):
        if _step(path) > step:
            aside = unused(path.with_name(f"{DAMAGED}-{path.name}"))
            os.replace(path, aside)
            logger.warning(f"the damaged checkpoint {path.name} is kept as {aside}: delete it if you do not need it")


def move_aside(run: Path) -> None:
    """Moves everything in a run folder except STAYS into a new folder in it; the checkpoints last."""
    aside = unused(run / f"{BEFORE}-1")
    aside.mkdir()
    moved = [path for path in run.iterdir() if path.name not in STAYS and not path.name.startswith(BEFORE)]
    for path in sorted(moved, key=lambda path: (path.name == CHECKPOINTS, path.name)):
        os.replace(path, aside / path.name)
    logger.warning(f"restart=true: the run starts at step 0, and its old files are in {aside}")


def unused(path: Path) -> Path:
    """Returns a path that does not exist: the given one, or with the next number that is free at its end."""
    number = 1
    while os.path.lexists(path):
        number += 1
        path = path.with_name(f"{path.name.removesuffix(f'-{number - 1}')}-{number}")
    return path


def _step(path: Path) -> int:
    found = STEP.fullmatch(path.name)
    return int(found[1]) if found else 0
