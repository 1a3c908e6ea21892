"""A real Slurm of two nodes on this machine, for a test session: tests/slurm/cluster.sh, and what tests ask of it."""

import os
import re
import shutil
import subprocess
import time
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
    """`base`: a new folder with a short path, since munge's socket is in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._own = {"GEN1_CLUSTER": str(base), "GEN1_CLUSTER_PORTS": " ".join(map(str, free_ports(3)))}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))
        }

    def start(self) -> None:
        told = self._manage("start")
        for setting in re.findall(r"(\w+)=(\S+)", told):
            self.environment[setting[0]] = setting[1]

    def stop(self) -> None:
        self._manage("stop")

    def _manage(self, verb: str) -> str:
        done = subprocess.run(
            [CLUSTER, verb], env={**os.environ, **self._own}, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, *command: str | Path, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """A client's command, in a folder, with more in its environment."""
        call = [str(part) for part in command]
        environment = {**self.environment, **more}
        return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    def submit(self, *command: str | Path, folder: Path, **more: str) -> str:
        """`sbatch` with these arguments; the job's id."""
        done = self.call("sbatch", "--parsable", *command, folder=folder, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol knows of a job, or of an array's element as ID_K."""
        done = self.call("scontrol", "show", "job", "--oneliner", number)
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))

    def wait(self, number: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """Polls until a job is in one of the states (or, without any, has ended); what scontrol then knows."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.job(number)
            if found["JobState"] in (states or ENDED):
                return found
            assert not states or found["JobState"] not in ENDED, f"job {number} has ended as {found['JobState']}"
            time.sleep(0.3)
        raise AssertionError(f"job {number} is {found['JobState']} ({found['Reason']}) after {seconds:g} s")
