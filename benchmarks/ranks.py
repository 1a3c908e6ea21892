"""Ranks of one training in processes of their own, started as a cluster's launcher starts them."""

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
    """What a rank finds. It has to be there before its process starts: Lightning asks for its rank when imported."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in places.items()}


def in_ranks(task: Callable[..., Any], world: int, *arguments: Any, seconds: float | None = None) -> list[Any]:
    """Calls `task(rank, *arguments)` in every rank; what they return. One process alone is no rank.

    Raises what a rank raises, BrokenProcessPool when one was killed, and TimeoutError after so many `seconds`.
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
        except BaseException:  # the others may wait for the one that failed
            for pool in pools:
                for process in list(pool._processes.values()):
                    process.kill()
            raise
