"""What the ranks leave in the run folder when a step takes too long, and the line that says which ranks are behind.

RUN/stuck/step-00001234/rank-00003.txt       where the rank is, and the Python stacks of its threads
                        collectives-00003    its last collectives, from PyTorch's flight recorder, which keeps the last
                                             2000 (TORCH_FR_BUFFER_SIZE); `torchfrtrace -p collectives- FOLDER` reads
                                             those of NCCL
"""

import faulthandler
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import torch._C._distributed_c10d as c10d
import torch.distributed
from torch.distributed.distributed_c10d import _world

from gen1_train.errors import UserError
from gen1_train.system.files import own_folder, refuse_link
from gen1_train.training.callbacks.agreement import SHOWN, listed, spans
from gen1_train.training.failures.deadline import Late, Position

FOLDER = "stuck"
WRITING = 5.0  # seconds in which a rank has to write its stacks; a disk may hang as well
RECORDER = 10.0  # seconds in which the flight recorder has to answer; the driver may be stuck

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def stuck_folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def write_evidence(run: Path, step: int, rank: int, position: Position) -> bool:
    """Writes the stacks and the last collectives of this rank. Returns whether the stacks were written in time."""
    written = threading.Event()

    def write() -> None:
        folder = own_folder(run, *stuck_folder(run, step).relative_to(run).parts)
        write_stacks(folder / f"rank-{rank:05d}.txt", rank, position)
        written.set()
        write_collectives(folder / f"collectives-{rank:05d}")

    within(WRITING, write)
    faulthandler.cancel_dump_traceback_later()  # this thread runs, so that the recorder does not hold Python's lock
    return written.is_set()


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """Returns what `work` returns; None if it takes longer, on a disk that hangs for example, or fails."""
    results: list[Result] = []

    def run() -> None:
        try:
            results.append(work())
        except (OSError, UserError, RuntimeError) as error:
            logger.debug("%s", error)

    thread = threading.Thread(target=run, name="evidence", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def write_stacks(path: Path, rank: int, position: Position) -> None:
    """Raises OSError, and UserError for a link."""
    refuse_link(path)
    with open(path, "w") as file:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(
            f"rank {rank} on {socket.gethostname()} at {now}: {position}, {position.collectives} collectives\n\n"
        )
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


def write_collectives(path: Path) -> None:
    """Writes what PyTorch's flight recorder holds; nothing in a single process. Raises OSError, and UserError for a
    link.

    If the recorder does not answer while it holds Python's lock, no thread could end this process: it then ends with
    exit code 1.
    """
    if not torch.distributed.is_initialized():
        return
    refuse_link(path)
    with open(path, "wb") as file:
        faulthandler.dump_traceback_later(RECORDER, exit=True, file=file)
        try:
            file.write(recorder()())
        finally:
            faulthandler.cancel_dump_traceback_later()


def recorder() -> Callable[[], bytes]:
    """Returns the function that dumps the flight recorder of the backend in use."""
    uses_nccl = any("nccl" in backend for backend, _ in _world.pg_map.values())
    return c10d._dump_nccl_trace if uses_nccl else c10d._dump_fr_trace  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Answer:
    """Where a rank is, as it tells the one that writes the line."""

    rank: int
    position: Position
    written: bool  # whether its stacks are in the run folder

    def __str__(self) -> str:
        return json.dumps([self.rank, *astuple(self.position), self.written]) + "\n"


def read_answers(text: bytes) -> list[Answer]:
    """Reads what the ranks have written one after another."""
    rows = [json.loads(line) for line in bytes(text).splitlines()]
    return [Answer(rank, Position(*position), written) for rank, *position, written in rows]


def stuck_line(late: Late, world: int, answers: Sequence[Answer], name: Callable[[int], str], run: Path) -> str:
    """Returns a line that says which ranks are behind, which ones do not answer, and where the stacks are.

    `name(rank)` returns a rank with its host; `run`: the run folder.
    """
    positions = {answer.rank: answer.position for answer in answers}
    silent = [rank for rank in range(world) if rank not in positions]
    parts = [str(late)]
    if silent:
        parts.append(f"{named(silent, name)} {'does' if len(silent) == 1 else 'do'} not answer")
    least, most = min(positions.values()), max(positions.values())
    if least < most:
        behind = sorted(rank for rank, position in positions.items() if position == least)
        verb = "is" if len(behind) == 1 else "are"
        parts.append(f"{named(behind, name)} {verb} behind, {least}, where others are {_apart(most, least)}")
    else:
        parts.append(f"{'all others are' if silent else 'all ranks are' if world > 1 else 'it is'} {least}")
    if written := sum(answer.written for answer in answers):
        ranks = f"{written} ranks" if written > 1 else f"rank {next(each.rank for each in answers if each.written)}"
        parts.append(f"the stacks of {ranks} are in {stuck_folder(run, late.step)}")
    return "; ".join(parts)


def _apart(most: Position, least: Position) -> str:
    """The farthest position, in words that differ from those of the least one."""
    if str(most) != str(least):
        return str(most)
    return f"{most.collectives - least.collectives} collectives farther"


def named(ranks: Sequence[int], name: Callable[[int], str]) -> str:
    """`rank 3 (node1, pid 17)`, or more of them in short."""
    if len(ranks) <= SHOWN:
        return " and ".join(map(name, ranks))
    return f"ranks {listed(spans(ranks))} (the first: {name(ranks[0])})"
