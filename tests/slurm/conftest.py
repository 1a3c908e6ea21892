import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing
from tests.slurm.station import Station


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes. Without Slurm, the tests are skipped, but fail in CI (.ci/run sets GEN1_NEED_SLURM)."""
    if programs := missing():
        reason = f"Slurm is not installed ({', '.join(programs)} not found): apt-get install slurm-wlm munge"
        assert not os.environ.get("GEN1_NEED_SLURM"), reason
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="gen1-slurm-", ignore_cleanup_errors=True) as base:
        cluster = Cluster(Path(base))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def station(cluster: Cluster) -> Iterator[Station]:
    with Station(cluster.base / "run" / "station") as station:
        yield station
