"""Forks the commands of jobs, which start in a fraction of a second then: the other end of tests/slurm/warm.py.

A job's process takes several seconds of both cores to import torch and Lightning, and a start of a stage on two nodes
has three of them. This session's fork server (tests/forkserver.py) has imported everything.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from tests.forkserver import has_same_imports
from tests.running import command

CLIENT = Path(__file__).with_name("warm.py")
MODULES = {"gen1-train": "gen1_train.train"}  # of the commands that it forks


class Station:
    """Forks what warm.py asks for, for the length of a `with` block, and kills in the end what still runs."""

    def __init__(self, address: Path) -> None:
        """`address`: of a socket, with a short path."""
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX)
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []  # with their jobs

    def __enter__(self) -> "Station":
        self._socket.bind(str(self._address))
        self._socket.listen(16)
        Thread(target=self._accept, name="station", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for _, process in self._running:
            process.kill()

    @property
    def prefix(self) -> str:
        """What precedes a command that is to be forked; a value for GEN1_RUN."""
        return f"{sys.executable} -I -S {CLIENT} {self._address}"

    def running(self, job: str) -> list[int]:
        """The process ids of a job's commands."""
        return [process.pid for owner, process in self._running if owner == job and process.poll() is None]

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection, _ = self._socket.accept()
                Thread(target=self._serve, args=[connection], name="station-command", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            head, files, *_ = socket.recv_fds(connection, 8, 3)
            content = b""
            while len(content) < int.from_bytes(head, "big"):
                content += connection.recv(2**20)
            request = json.loads(content)
            try:
                process = self._start(request, files, connection)
            finally:
                for file in files:
                    os.close(file)
            self._running.append((request["environment"].get("SLURM_JOB_ID", ""), process))
            Thread(target=forward, args=[connection, process, request["ignored"]], daemon=True).start()
            code = process.wait()
            with suppress(OSError):  # the client was killed
                connection.sendall(str(code).encode())
                connection.shutdown(socket.SHUT_RDWR)

    def _start(self, request: dict[str, Any], files: list[int], connection: socket.socket) -> "subprocess.Popen[bytes]":
        environment = request["environment"]
        if not has_same_imports(environment):
            os.write(files[2], b"station: the command would import something else than the fork server has\n")
        return subprocess.Popen(
            command(*self.program(request, connection)),
            cwd=request["folder"],
            env=environment,
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
        )

    def program(self, request: dict[str, Any], connection: socket.socket) -> list[str]:
        """The module and the arguments that a request is for."""
        return [MODULES[request["name"]], *request["words"]]


def forward(connection: socket.socket, process: "subprocess.Popen[bytes]", ignored: list[int]) -> None:
    """Sends the process the signals that its client receives, and kills it if the client is killed."""
    while numbers := receive(connection):
        for number in numbers:
            if number not in ignored or catches(process.pid, number):
                process.send_signal(number)
    process.kill()


def receive(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(16)
    return b""


def catches(pid: int, number: int) -> bool:
    """Whether a process has installed a handler; until then, it ignores what its client was started to ignore."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)
    return False
