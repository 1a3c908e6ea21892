"""kill -9 at any moment: the same command, called again until the run is finished, ends as if nothing had happened."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gen1_train.training.checkpoint import checkpoints_dir
from gen1_train.training.metrics import read_metrics
from tests.running import kill_when, run_well
from tests.training.runs import assert_equal_to_the_bit, folder, stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ["stage.steps=24", "checkpoint.every=2", "checkpoint.keep=2"]
KILLS = [*["anywhere"] * 3, *["training"] * 3, *["writing"] * 4]


def half_written(run: Path) -> set[tuple[str, int]]:
    """The checkpoints that are being written, or were when their process was killed."""
    return {(path.name, path.stat().st_ino) for path in checkpoints_dir(run).glob(".step-*.tmp")}


def moment(kind: str, run: Path, seconds: float, chance: random.Random) -> Callable[[], bool]:
    """Becomes true at a random moment of a life of the run, which takes `seconds` from its start to its end."""
    begun, rows, torn = time.monotonic(), len(read_metrics(run / "metrics.csv")), half_written(run)
    steps = chance.randint(1, 3)
    event: Callable[[], bool] = {
        "anywhere": lambda: True,
        "training": lambda: len(read_metrics(run / "metrics.csv")) >= rows + steps,
        "writing": lambda: bool(half_written(run) - torn),
    }[kind]
    delay = chance.uniform(0, {"anywhere": seconds, "training": 0.3, "writing": 0.05}[kind])
    since: list[float] = []  # when the event came

    def come() -> bool:
        if not since and event():
            since.append(begun if kind == "anywhere" else time.monotonic())
        return bool(since) and time.monotonic() >= since[0] + delay

    return come


def test_ten_kills_change_nothing(place):
    """Per-step losses, last weights and optimizer, ZeRO-2 on two processes. Some kills tear a checkpoint."""
    began = time.monotonic()
    run_well("gen1_train.train", *stage(place, 3, "never-killed", *SETTINGS))
    seconds = time.monotonic() - began
    chance, torn, runs = random.Random(5), 0, ["killed-0"]
    for kind in chance.sample(KILLS, len(KILLS)):
        killed = False
        while not killed:
            run = folder(place, runs[-1])
            before = half_written(run)
            ready = moment(kind, run, seconds, chance)
            killed = kill_when("gen1_train.train", *stage(place, 3, runs[-1], *SETTINGS), ready=ready)
            torn += bool(half_written(run) - before)
            if not killed:  # it was finished first
                runs.append(f"killed-{len(runs)}")
    assert torn
    run_well("gen1_train.train", *stage(place, 3, runs[-1], *SETTINGS))
    for name in runs:
        assert_equal_to_the_bit(place, name, "never-killed")
        assert not half_written(folder(place, name))
