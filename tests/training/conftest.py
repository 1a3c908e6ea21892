"""What whole runs start from, made once."""

from pathlib import Path

import pytest

from miniature.tiny import write_stable_diffusion
from tests.made import make_shard_set
from tests.running import TRAIN, run_well
from tests.training.runs import stage


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made shard set, a random Stable Diffusion, and stages 1 and 2 run from it."""
    root = tmp_path_factory.mktemp("runs")
    make_shard_set(root / "set")
    write_stable_diffusion(root / "sd", widths=(32, 64, 64, 64), layers=1, heads=2)
    run_well("gen1_train.train", "stage=1", *TRAIN, f"init.from={root / 'sd'}", f"output={root / 'first'}")
    run_well("gen1_train.train", *stage(root, 2, "first"), "stage.steps=2")
    return root
