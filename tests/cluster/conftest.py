import os
from pathlib import Path

import pytest

from tests.cluster.hosts import missing, missing_netem
from tests.cluster.runs import settings
from tests.running import run_well


@pytest.fixture(scope="session", autouse=True)
def namespaces() -> None:
    """Without hosts, the tests are skipped, but fail where .ci/run has found that there can be some."""
    if reason := missing():
        assert not os.environ.get("GEN1_NEED_CLUSTER"), reason
        pytest.skip(reason)


@pytest.fixture(scope="session")
def netem(namespaces: None) -> None:
    """Links that delay and lose packets as they are told; not every kernel has them."""
    if reason := missing_netem():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def root(run_root: Path) -> Path:
    """The folder of all runs, with one on a single host."""
    run_well("gen1_train.train", *settings(run_root, "straight"))
    return run_root
