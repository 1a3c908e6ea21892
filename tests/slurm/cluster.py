"""A real Slurm of two nodes on this machine, for a test session; tests/slurm/cluster.sh starts it."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ranks import free_ports

SCRIPTS = Path(__file__).parents[2] / "slurm"
CLUSTER = Path(__file__).with_name("cluster.sh")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def missing() -> list[str]:
    """The programs of Slurm that this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


class Cluster:
    def __init__(self, base: Path, enter: Sequence[str] = (), **variables: str) -> None:
        """Args:
        base: a new folder with a short path, because munge's socket is in it.
        enter: what precedes the command lines of clients.
        variables: more that cluster.sh reads.
        """
        self.base = base
        self._enter = enter
        self._own = {"GEN1_CLUSTER": str(base), "GEN1_CLUSTER_PORTS": " ".join(map(str, free_ports(3))), **variables}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))
        }

    def start(self) -> None:
        self.environment |= dict(re.findall(r"(\w+)=(\S+)", self._manage("start")))

    def stop(self) -> None:
        self._manage("stop")

    def _manage(self, verb: str) -> str:
        result = subprocess.run(
            [CLUSTER, verb], env={**os.environ, **self._own}, capture_output=True, text=True, timeout=90
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def call(self, *command: str | Path, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of a client of the cluster, with `more` variables in its environment."""
        words = [*self._enter, *(str(word) for word in command)]
        environment = {**self.environment, **more}
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    def submit(self, *command: str | Path, folder: Path, **more: str) -> str:
        """Runs `sbatch` with these arguments; returns the job's id."""
        result = self.call("sbatch", "--parsable", *command, folder=folder, **more)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields that scontrol shows for a job, or for an element of an array (ID_K)."""
        result = self.call("scontrol", "show", "job", "--oneliner", number)
        assert result.returncode == 0, result.stderr
        return dict(re.findall(r"(\S+?)=(\S*)", result.stdout))

    def wait(self, number: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """Waits until a job is in one of the states, or without any, has ended; returns its fields."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = self.job(number)
            if job["JobState"] in (states or ENDED):
                return job
            assert not states or job["JobState"] not in ENDED, f"job {number} has ended as {job['JobState']}"
            time.sleep(0.3)
        raise AssertionError(f"job {number} is {job['JobState']} ({job['Reason']}) after {seconds:g} s")
