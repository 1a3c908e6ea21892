"""Verifies the newest checkpoint of the run at argv[1] as one of many processes, which then form a process group.

Prints the rank, the step of the checkpoint, and the number of files that this rank has hashed.
"""

import logging
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.checkpoints.verification import verification


def meet(run: Path) -> tuple[int, int, int]:
    logging.disable()
    hashed: list[Path] = []
    sha256 = checkpoint.sha256

    def record(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    with verification(nodes=1, processes=2, patience=60) as shared, patch.object(checkpoint, "sha256", record):
        found = checkpoint.latest(run, verify=shared.verify)
        shared.close()
        torch.distributed.init_process_group("gloo")
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert int(total) == torch.distributed.get_world_size()
    assert found is not None
    return torch.distributed.get_rank(), found.info.step, len(hashed)


if __name__ == "__main__":
    found = meet(Path(sys.argv[1]))
    os.write(1, f"{' '.join(map(str, found))}\n".encode())  # at once, because two processes share the pipe
