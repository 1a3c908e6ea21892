"""The scripts on a Slurm whose nodes are hosts with networks of their own: a job that loses one continues elsewhere."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen1_train.training.checkpoints.checkpoint import latest
from tests.cluster.hosts import hosts
from tests.cluster.rank import HELD, SILENCE, STEP
from tests.cluster.runs import EVERY
from tests.cluster.slurm import HostJobs, slurm
from tests.slurm.cluster import missing
from tests.training.runs import assert_equal_to_the_bit, folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 5.0  # without a heartbeat, after which a host counts as gone for the ranks of the first start
BOUND = SECONDS + 30.0  # within which all ranks have ended
TIMEOUT = 12  # seconds without an answer, after which Slurm begins to count a host as gone


@pytest.fixture
def jobs() -> Iterator[HostJobs]:
    """Jobs on six hosts. Without Slurm, the test is skipped, but fails in CI, see tests/slurm/conftest.py."""
    if programs := missing():
        reason = f"Slurm is not installed ({', '.join(programs)} not found): apt-get install slurm-wlm munge"
        assert not os.environ.get("GEN1_NEED_SLURM"), reason
        pytest.skip(reason)
    with hosts(6) as made, slurm(made, TIMEOUT) as jobs:
        yield jobs


def test_jobs_on_hosts_make_what_one_host_makes_even_if_they_lose_hosts(
    root: Path, jobs: HostJobs, tmp_path: Path
) -> None:
    """First the ranks notice that a host is cut off, and name it; Slurm does after they have ended.

    Then the host of rank 0 and of the script is cut off, and Slurm counts it as gone before the ranks do: it is told
    so, as by an operator who does not wait for SlurmdTimeout. The old rank 0 still runs there when the job starts again
    on other hosts. When its host comes back, Slurm ends it.

    A job that loses nothing runs on two other hosts meanwhile.
    """
    for start in range(3):
        (tmp_path / f"{start}").mkdir()
    (tmp_path / "2" / "held").touch()  # the last start is not held
    job = jobs.submit(root, "cut", "--exclude=host4,host5", **{HELD: f"training:{tmp_path}", SILENCE: f"{SECONDS}"})

    def cut_off(lost: int, start: int) -> None:
        """Cuts off a host while a rank is held in training; then the rank runs on."""
        jobs.wait_for("the training", job, (tmp_path / f"{start}" / "held").exists)
        jobs.wait_for("a checkpoint", job, lambda: latest(folder(root, "cut")))
        jobs.hosts[lost].cut_off()
        (tmp_path / f"{start}" / "go").touch()

    cut_off(1, start=0)
    name = re.compile(r"error: rank 1 \(host1, pid \d+\) is gone: ")
    jobs.wait_for("the name of the host", job, lambda: name.search(jobs.log(job)), BOUND)
    jobs.wait_for("the end of the ranks", job, lambda: not jobs.station.running(job), BOUND)
    assert len(jobs.nodes(job)) == 1 and "Traceback" not in jobs.log(job), jobs.log(job)
    checkpoint = latest(folder(root, "cut"))
    assert checkpoint is not None and checkpoint.info.step == EVERY < STEP
    undisturbed = jobs.submit(root, "whole", "--nodelist=host4,host5")
    jobs.wait_for("the restart on another host", job, lambda: len(jobs.nodes(job)) == 2)

    first = jobs.cluster.job(job)["BatchHost"]
    lost = [host.name for host in jobs.hosts].index(first)
    cut_off(lost, start=1)
    gone = jobs.cluster.call("scontrol", "update", f"NodeName={first}", "State=DOWN", "Reason=lost")
    assert gone.returncode == 0, gone.stderr
    old = jobs.station.running(job)
    jobs.wait_for("the restart without the first host", job, lambda: len(jobs.nodes(job)) == 3)
    assert set(old) & set(jobs.station.running(job)), jobs.log(job)
    jobs.hosts[lost].plug_in()

    ended = jobs.cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), jobs.log(job)
    starts = jobs.nodes(job)
    assert starts[0] == ["host0", "host1"] and "host1" not in {*starts[1], *starts[2]} and first not in starts[2]
    assert jobs.log(job).count("resuming from ") == 2 and len(name.findall(jobs.log(job))) == 1
    assert_equal_to_the_bit(root, "cut", "straight")
    until = time.monotonic() + 90  # Slurm may notice only now that the host has come back
    while jobs.station.running(job):
        assert time.monotonic() < until, jobs.log(job)
        time.sleep(0.1)
    ended = jobs.cluster.wait(undisturbed)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), jobs.log(undisturbed)
    assert_equal_to_the_bit(root, "whole", "straight")
