"""Who is still there: each rank says so in the store through which the ranks met, and looks after the others.

A rank that was killed cannot say that it fails, and the others would wait for it in a collective: for half an hour
under NCCL. Under gloo they would crash, with a traceback that names nobody.
"""

import json
import os
import socket
import time
from pathlib import Path

from torch.distributed import Store

SILENCE = 60.0  # seconds after which a rank on another machine that says nothing is gone
PLACE, BEAT = "gen1-train/place/", "gen1-train/beat/"  # in the store, with the rank behind


class Heartbeats:
    """This rank's, and what it knows of the others'. Not for several threads."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._beats = 0
        self._places: dict[int, dict[str, str | int]] = {}  # of the ranks that have said where they are
        self._heard: dict[int, tuple[bytes, float]] = {}  # rank -> its last beat, and when it was new
        store.set(
            f"{PLACE}{rank}", json.dumps({"host": socket.gethostname(), "machine": machine(), "pid": os.getpid()})
        )

    def beat(self) -> None:
        self._beats += 1
        self._store.set(f"{BEAT}{self._rank}", str(self._beats))

    def lost(self) -> str | None:
        """What is known of a rank that is gone; of those on other machines rank 0 alone finds out."""
        for rank in range(self._world):
            place = self._place(rank)
            if rank == self._rank or place is None:
                continue
            if place["machine"] == machine():
                if not is_running(int(place["pid"])):
                    return f"{self.name(rank)} is gone: it was killed, or ended without a word"
            elif self._rank == 0 and self._silent(rank):
                return f"{self.name(rank)} has said nothing for {SILENCE:g} s: it was killed, or its machine is gone"
        return None

    def name(self, rank: int) -> str:
        place = self._places.get(rank)
        return f"rank {rank} ({place['host']}, pid {place['pid']})" if place else f"rank {rank}"

    def _place(self, rank: int) -> dict[str, str | int] | None:
        if rank not in self._places and self._store.check([f"{PLACE}{rank}"]):
            self._places[rank] = json.loads(self._store.get(f"{PLACE}{rank}"))
        return self._places.get(rank)

    def _silent(self, rank: int) -> bool:
        key, now = f"{BEAT}{rank}", time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else b""
        last, since = self._heard.setdefault(rank, (beat, now))
        if beat != last:
            self._heard[rank] = beat, now
        return beat == last and now - since > SILENCE


def machine() -> str:
    """Names what process ids count in: a boot of a kernel, and in it a container's own numbering."""
    boot, numbering = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not numbering.exists():
        return f"{socket.gethostname()}, unknown to {os.getpid()}"  # no other process is looked for there
    return f"{boot.read_text().strip()} {numbering.stat().st_ino}"


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended; one that nobody has waited for yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
