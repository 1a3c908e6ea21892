"""Runs of stage 3 on several hosts, one rank on each."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.hosts import Host
from tests.running import ENVIRONMENT, REPOSITORY, command
from tests.training.runs import stage

PORT = 29500
CLIPS = 6  # of a batch: one, two and three ranks can share them
EVERY = 3  # steps between two checkpoints, see `stage`


def settings(root: Path, output: str, hosts: int = 1) -> list[str]:
    """The settings of a run on this number of hosts; on one, it has two ranks."""
    shares = ["trainer.devices=1", f"trainer.nodes={hosts}", "data.workers=0"] if hosts > 1 else []
    return stage(root, 3, output, f"data.batch_clips={CLIPS}", *shares)


class Ranks:
    """The ranks of a run, each with the file that its output goes to."""

    def __init__(self, hosts: Sequence[Host], words: Sequence[str], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._hosts = hosts
        self._words = words
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, **variables: str) -> "Ranks":
        """Starts all ranks, with the variables that torchrun sets, and some more."""
        for rank in range(len(self._hosts)):
            self.start_rank(rank, **variables)
        return self

    def start_rank(self, rank: int, **variables: str) -> None:
        host, world = self._hosts[rank], len(self._hosts)
        launcher = {
            "TORCHELASTIC_RUN_ID": "none",
            "RANK": f"{rank}",
            "GROUP_RANK": f"{rank}",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "WORLD_SIZE": f"{world}",
            "MASTER_ADDR": self._hosts[0].name,
            "MASTER_PORT": f"{PORT}",
        }
        with open(self._log(rank), "wb") as log:
            line = command("tests.cluster.rank", f"{host.pid}", *self._words)
            environment = {**ENVIRONMENT, **launcher, **variables}
            process = subprocess.Popen(line, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        self._processes.append(process)

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"

    def output(self, rank: int) -> str:
        return self._log(rank).read_text()

    def wait_for(self, what: str, has_come: Callable[[], object], seconds: float = 120) -> None:
        """Waits for something that happens while all ranks run."""
        until = time.monotonic() + seconds
        while not has_come():
            ended = [rank for rank, process in enumerate(self._processes) if process.poll() is not None]
            assert not ended and time.monotonic() < until, f"{what} has not come: {self.outputs()}"
            time.sleep(0.02)

    def codes(self, seconds: float) -> list[int]:
        """Waits until all ranks have ended; returns their exit codes. A rank that has not in time has the code -9."""
        until = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self._processes]

    def outputs(self) -> str:
        return "\n".join(f"--- rank {rank}:\n{self.output(rank)[-3000:]}" for rank in range(len(self._processes)))
