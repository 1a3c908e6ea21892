"""One thread a process, since the tests' tensors are small and xdist runs a process on every core; quick commands."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from tests import forkserver

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"
forkserver.install()
# A background job of a shell ignores SIGINT, and one under nohup SIGHUP; their children would do so, too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder of remembered traces, which the workers of xdist inherit from their controller."""
    if forkserver.TRACES not in os.environ:
        os.environ[forkserver.TRACES] = tempfile.mkdtemp(prefix="gen1-traces-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(forkserver.TRACES)))
    forkserver.ENVIRONMENT[forkserver.TRACES] = os.environ[forkserver.TRACES]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, so that no worker ends with one while the others are idle; a long one has more time."""
    lengths: dict[Path, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        length = limit.args[0] if limit else float(item.get_closest_marker("slow") is not None)
        lengths[item.path] = max(length, lengths.get(item.path, 0.0))
    items.sort(key=lambda item: -lengths[item.path])


@pytest.fixture(scope="session")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that runs of stage 3 start from: a shard set, a random Stable Diffusion, and stages 1 and 2."""
    from tests.made import make_shard_set, make_stable_diffusion  # here: most tests do not need what these import
    from tests.running import TRAIN, run_well
    from tests.training.runs import stage

    root = tmp_path_factory.mktemp("runs")
    make_shard_set(root / "set")
    make_stable_diffusion(root / "sd")
    run_well("gen1_train.train", "stage=1", *TRAIN, f"init.from={root / 'sd'}", f"output={root / 'first'}")
    run_well("gen1_train.train", *stage(root, 2, "first"), "stage.steps=2")
    return root
