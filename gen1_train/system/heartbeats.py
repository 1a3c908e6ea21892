"""Detects ranks that were killed: each rank writes heartbeats into the store through which the ranks met.

A rank that was killed cannot report a failure. The others would wait for it in a collective for half an hour under
NCCL; under gloo they would crash with a traceback that does not name the rank.
"""

import json
import os
import socket
import time
from pathlib import Path

from torch.distributed import Store

SILENCE = 60.0  # seconds without a heartbeat after which a rank on another machine counts as gone
ADDRESS = "gen1-train/place/"  # in the store, followed by the rank: its host, machine and pid
BEAT = "gen1-train/beat/"  # in the store, followed by the rank: its number of heartbeats


class Heartbeats:
    """The heartbeats of this rank, and the state of the others. Not thread-safe."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store = store
        self._rank = rank
        self._world = world
        self._beats = 0
        self._addresses: dict[int, dict[str, str | int]] = {}  # of the ranks that have registered so far
        self._last_beats: dict[int, tuple[bytes, float]] = {}  # rank -> its last heartbeat, and when it arrived
        address = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid()}
        store.set(f"{ADDRESS}{rank}", json.dumps(address))

    def beat(self) -> None:
        self._beats += 1
        self._store.set(f"{BEAT}{self._rank}", str(self._beats))

    def lost(self) -> str | None:
        """Returns a line about a rank that is gone, or None. Only rank 0 detects lost ranks on other machines."""
        for rank in range(self._world):
            address = self._address(rank)
            if rank == self._rank or address is None:
                continue
            if address["machine"] == machine():
                if not is_running(int(address["pid"])):
                    return f"{self.name(rank)} is gone: it was killed, or ended without an error message"
            elif self._rank == 0 and self._is_silent(rank):
                return (
                    f"{self.name(rank)} is gone: no heartbeat for {SILENCE:g} s; it was killed, or its machine is gone"
                )
        return None

    def name(self, rank: int) -> str:
        address = self._addresses.get(rank)
        return f"rank {rank} ({address['host']}, pid {address['pid']})" if address else f"rank {rank}"

    def _address(self, rank: int) -> dict[str, str | int] | None:
        if rank not in self._addresses and self._store.check([f"{ADDRESS}{rank}"]):
            self._addresses[rank] = json.loads(self._store.get(f"{ADDRESS}{rank}"))
        return self._addresses.get(rank)

    def _is_silent(self, rank: int) -> bool:
        key = f"{BEAT}{rank}"
        now = time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else b""
        last, since = self._last_beats.setdefault(rank, (beat, now))
        if beat != last:
            self._last_beats[rank] = (beat, now)
        return beat == last and now - since > SILENCE


def machine() -> str:
    """Identifies the PID namespace of this process: the boot of the kernel, and the container."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not namespace.exists():
        return f"{socket.gethostname()}, unknown to {os.getpid()}"  # unique: no other process counts as of this machine
    return f"{boot.read_text().strip()} {namespace.stat().st_ino}"


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; a zombie has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
