import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes; where Slurm is not installed the tests are skipped, but not in CI (.ci/run sets GEN1_NEED_SLURM)."""
    if lacks := missing():
        said = f"Slurm is not installed ({', '.join(lacks)} not found): apt-get install slurm-wlm munge"
        assert not os.environ.get("GEN1_NEED_SLURM"), said
        pytest.skip(said)
    with tempfile.TemporaryDirectory(prefix="gen1-slurm-", ignore_cleanup_errors=True) as base:
        made = Cluster(Path(base))
        try:
            made.start()
            yield made
        finally:
            made.stop()
