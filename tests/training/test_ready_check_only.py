"""The checks of a start. What a signal does to a run is in tests/crashes."""

from pathlib import Path

import pytest

from tests.running import run, run_well
from tests.training.runs import stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ["stage.steps=16", "checkpoint.every=100"]


def test_check_only_writes_nothing(run_root: Path):
    settings = stage(run_root, 3, "checked", *SETTINGS, "check_only=true")
    said = run_well("gen1_train.train", *settings)
    assert "stage 3 can run from step 0 to 16" in said and "on 2 processes" in said
    wrong = run("gen1_train.train", *settings, f"data.root={run_root / 'nowhere'}")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr and wrong.stderr.count("\n") == 1
    assert not (run_root / "checked").exists()
