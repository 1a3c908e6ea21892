"""A run that is asked to stop, by one signal to all or to one of its ranks, goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from gen1_train.exits import STOPPED
from gen1_train.training.checkpoint import latest
from gen1_train.training.metrics import read_metrics
from tests.running import run, run_well, signal_when
from tests.training.runs import assert_equal_to_the_bit, folder, stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ["stage.steps=16", "checkpoint.every=100"]


def ranks(pid: int) -> list[int]:
    """The processes that run gen1-train, the first one's pid given."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "gen1_train.train"], capture_output=True, text=True).stdout
    return [pid, *map(int, found.split())]


def family(pid: int) -> list[int]:
    """A process and all its descendants: whom Slurm sends a signal to."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [pid, *(member for child in map(int, found.split()) for member in family(child))]


def tell_all_twice(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for member in family(pid):
            os.kill(member, number)


def tell_one(pid: int) -> None:
    os.kill(ranks(pid)[1], signal.SIGUSR1)


def test_a_stopped_run_goes_on_to_the_bit(place: Path):
    """ZeRO-2 on two processes, stopped twice; there is no checkpoint but those that the signals ask for."""
    settings = stage(place, 3, "stopped", *SETTINGS)
    metrics = folder(place, "stopped") / "metrics.csv"
    steps = [0]
    for send in (tell_one, tell_all_twice):

        def ready(rows: int = steps[-1] + 2) -> bool:
            return len(read_metrics(metrics)) >= rows

        code, said = signal_when("gen1_train.train", *settings, ready=ready, send=send)
        assert code == STOPPED, said
        stopped = latest(folder(place, "stopped"))
        assert stopped is not None and steps[-1] + 2 <= stopped.info.step < 16 and not stopped.info.finished
        assert f"stage 3 was stopped after step {stopped.info.step}: {stopped.path}; call again to go on" in said
        assert "Traceback" not in said
        steps.append(stopped.info.step)
    run_well("gen1_train.train", *settings)
    run_well("gen1_train.train", *stage(place, 3, "never-stopped", *SETTINGS))
    assert_equal_to_the_bit(place, "stopped", "never-stopped")
    starts = [json.loads(line) for line in (folder(place, "stopped") / "starts.jsonl").read_text().splitlines()]
    assert [(start["step"], start["ranks"]) for start in starts] == [(step, 2) for step in steps]


def test_before_the_first_step_a_run_just_ends(place: Path):
    settings = stage(place, 3, "early", *SETTINGS)
    written = folder(place, "early") / "config.yaml"
    code, said = signal_when(
        "gen1_train.train", *settings, ready=written.exists, send=lambda pid: os.kill(pid, signal.SIGTERM)
    )
    assert code == 128 + signal.SIGTERM, said
    assert latest(folder(place, "early")) is None


def test_the_checks_of_a_start_alone_write_nothing(place: Path):
    settings = stage(place, 3, "checked", *SETTINGS, "check_only=true")
    said = run_well("gen1_train.train", *settings)
    assert "stage 3 can go from step 0 to 16" in said and "on 2 processes" in said
    wrong = run("gen1_train.train", *settings, f"data.root={place / 'nowhere'}")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr and wrong.stderr.count("\n") == 1
    assert not (place / "checked").exists()
