"""A Slurm whose nodes are hosts, and jobs of stage 3 on it."""

import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.cluster.hosts import HUB, Host
from tests.cluster.rank import HELD, SILENCE
from tests.cluster.runs import settings
from tests.slurm.cluster import ENDED, SCRIPTS, Cluster
from tests.slurm.station import Station


class HostStation(Station):
    """Forks commands and lets them enter the host that they were called on."""

    def program(self, request: dict[str, Any], connection: socket.socket) -> list[str]:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return ["tests.cluster.rank", str(struct.unpack("3i", peer)[0]), *request["words"]]


@contextmanager
def slurm(hosts: Sequence[Host], timeout: int) -> Iterator["HostJobs"]:
    """A Slurm with these nodes, of which one counts as gone after `timeout` seconds."""
    switch = hosts[0].switch
    with TemporaryDirectory(prefix="gen1-slurm-", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        cluster = Cluster(
            base,
            enter=hosts[0].at_switch(),
            GEN1_CLUSTER_HOSTS=" ".join(f"{host.name},{host.address},{host.pid}" for host in hosts),
            GEN1_CLUSTER_HUB=f"{HUB},{switch}",
            GEN1_CLUSTER_TIMEOUT=str(timeout),
        )
        try:
            cluster.start()
            with HostStation(base / "run" / "station") as station:
                yield HostJobs(hosts, cluster, station)
        finally:
            cluster.stop()


class HostJobs:
    """Jobs of stage 3 on two of the hosts, one rank on each."""

    def __init__(self, hosts: Sequence[Host], cluster: Cluster, station: Station) -> None:
        self.hosts = hosts
        self.cluster = cluster
        self.station = station
        self._folder = cluster.base / "jobs"
        self._folder.mkdir()
        self._site = self._folder / "site.env"
        path = f"{Path(sys.executable).parent}:$PATH"
        self._site.write_text(
            f"export PATH={path} CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu OMP_NUM_THREADS=1\n"
            f"GEN1_RUN=({station.prefix})\n"
            # each start is held by itself; after the first one, Slurm notices before the ranks do
            f'[ -z "${{{HELD}:-}}" ] || {HELD}+=/${{SLURM_RESTART_COUNT:-0}}\n'
            f'[ -z "${{SLURM_RESTART_COUNT:-}}" ] || export {SILENCE}=300\n'
        )

    def submit(self, root: Path, output: str, *options: str, **variables: str) -> str:
        """Returns the job's id.

        Args:
        options: more of sbatch's.
        variables: those of tests/cluster/rank.py; the folder in HELD has one for each start.
        """
        script = [*options, "--nodes=2", "--mincpus=1", SCRIPTS / "stage3.sh", *settings(root, output, hosts=2)]
        return self.cluster.submit(*script, folder=self._folder, GEN1_SITE=str(self._site), **variables)

    def log(self, job: str) -> str:
        file = self._folder / f"gen1-stage3-{job}.log"
        return file.read_text() if file.exists() else ""

    def nodes(self, job: str) -> list[list[str]]:
        """The nodes of each start of a job."""
        starts = re.findall(r"start \d+, 2 nodes x 1 ranks x \d+ CPUs: (\S+),", self.log(job))
        return [self.cluster.call("scontrol", "show", "hostnames", names).stdout.split() for names in starts]

    def wait_for(self, what: str, job: str, has_come: Callable[[], object], seconds: float = 300) -> None:
        """Waits for something that happens before a job has ended."""
        until = time.monotonic() + seconds
        while not has_come():
            assert self.cluster.job(job)["JobState"] not in ENDED, self.log(job)
            assert time.monotonic() < until, f"{what} has not come: {self.log(job)}"
            time.sleep(0.05)
