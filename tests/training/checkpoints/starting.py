"""Starts a run of two ranks and counts the files that each one hashes: `python -m … ROOT OUTPUT STEPS COUNTS`.

See tests/training/alone.py for the run. COUNTS: a folder, in which each rank writes a file of its number.
"""

import sys
from pathlib import Path
from unittest.mock import patch

from pytorch_lightning.utilities import rank_zero_only

from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.run import train
from tests.training.alone import config


def count(rank: int, root: Path, output: str, steps: int) -> list[str]:
    """Runs stage 3 as one of two ranks, and returns the names of the files that this rank has hashed to start it."""
    hashed: list[str] = []
    sha256 = checkpoint.sha256

    def record(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    settings = config(root, output, steps)
    settings.trainer.devices = 2
    settings.strategy.name = "ddp"
    with patch.object(checkpoint, "sha256", record):
        assert train(settings) == 0
    return sorted(hashed)


if __name__ == "__main__":
    found = count(0, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    (Path(sys.argv[4]) / str(rank_zero_only.rank)).write_text(" ".join(found))
