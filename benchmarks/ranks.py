"""Starts the ranks of a training run in separate processes, as a cluster's launcher does."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Returns a rank's environment. Set it before the process starts: Lightning reads the rank when it is imported."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in variables.items()}


def in_ranks(task: Callable[..., Any], world: int, *arguments: Any, seconds: float | None = None) -> list[Any]:
    """Calls `task(rank, *arguments)` in every rank and returns the results. A single process gets no rank.

    Raises the exception of a rank, BrokenProcessPool if one was killed, and TimeoutError after `seconds`.
    """
    (port,) = free_ports(1)
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(world)]
        results = []
        for rank, pool in enumerate(pools):
            with patch.dict(os.environ, environment(rank, world, port) if world > 1 else {}):
                results.append(pool.submit(task, rank, *arguments))
        try:
            return [result.result(seconds) for result in results]
        except BaseException:  # other ranks may wait for the failed one
            for pool in pools:
                for process in list(pool._processes.values()):
                    process.kill()
            raise
