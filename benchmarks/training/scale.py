"""What a start costs the whole cluster: counted in two real ranks, and for the watch in a simulation of all of them.

Rank 0 verifies the checkpoint for all. Everything else of a start is the same work in every other rank.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pytorch_lightning import Callback
from torch.distributed import HashStore

from benchmarks.communication import FULL_SIZE
from benchmarks.questions import Row
from benchmarks.ranks import in_ranks
from benchmarks.synthetic_runs import TINY, composed, prepare_run, train_with
from gen1_train.batch import Pool
from gen1_train.system import heartbeats
from gen1_train.system.heartbeats import Heartbeats
from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.failures.deadline import collectives
from gen1_train.training.planning.memory import Layout, Planner
from gen1_train.training.stages import stage_unet

RANKS = (8, 64, 1024)
EACH = 8  # ranks of a machine


def ask_scale(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields a row for each size of cluster."""
    model = [*TINY, "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2", "strategy=zero1"]
    start = prepare_run(folder, Pool("video", 64, 64, 8), model)
    settings = [*start, f"output={folder / 'runs'}", "data.batch_clips=2", "data.workers=1", "checkpoint.every=1"]
    config = composed(settings)
    weights = Planner(stage_unet(config.model, config.stage), Layout("single", "32-true", 1)).weights
    counted = {}
    for kind, steps in (("stage", 1), ("resume", 2)):  # the second start resumes what the first one has left
        counted[kind] = in_ranks(count_start, 2, [*settings, f"stage.steps={steps}"], folder)
    for ranks in RANKS:
        row: Row = {"ranks": ranks, "machines": ranks // EACH, **watch(ranks)}
        for kind, (first, other) in counted.items():
            opens, hashed = (first[name] + (ranks - 1) * other[name] for name in ("opens", "hashed"))
            row |= {
                f"{kind}_opens": opens,
                f"{kind}_hashed_gigabytes": round(hashed * FULL_SIZE / weights / 1e9, 2),
                f"{kind}_collectives": other["collectives"],
            }
        yield row


def count_start(rank: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Starts a run in this process, and counts what it does until its first step begins."""
    os.dup2(2, 1)  # standard output is for JSON lines
    counts = Counting(str(folder))
    with patch.object(checkpoint, "sha256", counts.sha256):
        train_with(counts, overrides)
    return counts.seen


class Counting(Callback):
    """Counts the files of a folder that this process opens, and the bytes that it hashes, until the first step."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.opens = 0
        self.hashed: list[int] = []  # bytes, in the threads that hash
        self.seen: dict[str, Any] = {}
        self._sha256 = checkpoint.sha256
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.opens += event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(self.folder)

    def sha256(self, path: Path) -> str:
        if path.suffix == ".safetensors":  # the others do not grow with the size of the weights
            self.hashed.append(path.stat().st_size - header_bytes(path))
        return self._sha256(path)

    def on_train_batch_start(self, *_: Any) -> None:
        if not self.seen:
            opens = self.opens - len(self.hashed)  # `header_bytes` opens each once more
            self.seen = {"opens": opens, "hashed": sum(self.hashed), "collectives": collectives()}


def header_bytes(path: Path) -> int:
    """The size of the JSON before the tensors, which grows with their number only."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


class CountingStore:
    """A store that counts its requests."""

    def __init__(self) -> None:
        self.store = HashStore()
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.requests[name] += 1
        return getattr(self.store, name)


def watch(ranks: int) -> Row:
    """Simulates the heartbeats of a cluster: requests of the start, and those of a second afterwards."""
    store, now = CountingStore(), [0.0]
    machines = iter([rank // EACH for rank in range(ranks)])
    with (
        patch.object(heartbeats, "machine", lambda: f"machine {next(machines)}"),
        patch.object(heartbeats.time, "monotonic", lambda: now[0]),
        patch.object(heartbeats, "is_running", lambda pid: True),
    ):
        members: list[Any] = [Heartbeats(store, rank, "notice", ranks) for rank in range(ranks)]  # type: ignore[arg-type]
        for _ in range(2):
            for member in members:
                member.beat()
                member.lost()
        at_start = store.requests.total()
        for member in members:
            member.beat()
            member.lost()
    period = members[0].period
    # rank 0's machine asks in every PERIOD, the voices of the others in their own, longer one
    own = EACH - 1
    others = store.requests.total() - at_start - own
    return {
        "store_requests_at_start": at_start,
        "store_requests_per_second": round(others / period + own / heartbeats.PERIOD, 1),
        "news_takes_s": round(period, 2),
    }
