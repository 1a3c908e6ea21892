"""Detects ranks that were killed, through the store in which the ranks met and through the process table.

A rank that was killed cannot report a failure. The others would wait for it in a collective for half an hour under
NCCL; under gloo they would crash with a traceback that does not name the rank.

One rank of each machine is its voice, the first one: only voices talk to the store, which is in one process and serves
the whole cluster. A voice watches the other processes of its machine, these watch the voice, and rank 0 watches the
voices of other machines. What a voice asks in a period is two requests, and the period grows with their number.
"""

import hashlib
import json
import os
import socket
import time
from pathlib import Path

from torch.distributed import Store

PERIOD = 0.5  # seconds between two heartbeats of a voice, or more, see RATE
RATE = 80.0  # requests per second of all voices together, which the period keeps to
SILENCE = 60.0  # seconds without a heartbeat after which a machine counts as gone
PLACE = "gen1-train/place/"  # in the store, followed by the rank: its host and pid
MACHINE = "gen1-train/machine/"  # followed by the machine: its ranks
VOICES = "gen1-train/voices"  # all ranks that are or were voices
BEAT = "gen1-train/beat/"  # followed by the rank: the number of its heartbeats, or RESIGNED
RESIGNED = "resigned"


class Heartbeats:
    """The heartbeats of this rank's machine, and the state of the others. Not thread-safe."""

    def __init__(self, store: Store, rank: int, notice: str, world: int) -> None:
        """`notice`: a key of the store that voices look at, too; see `beat`. `world`: the number of ranks."""
        self._store = store
        self._rank = rank
        self._notice = notice
        self._beats = 0
        self._machine = MACHINE + hashlib.sha256(machine().encode()).hexdigest()[:16]
        self._neighbors = [rank]  # the ranks of this machine that have registered, first one first
        self._voices: list[int] = []  # as this rank knows them if it is one
        self._missing = set(range(world)) if rank == 0 else set()  # ranks that have not registered, as rank 0 knows
        self._started = time.monotonic()
        self._has_voice = False  # whether this rank is in the list of voices
        self._places: dict[int, tuple[str, int]] = {}  # rank -> host and pid, where they are known
        self._last_beats: dict[int, tuple[bytes, float]] = {}  # voice -> its last heartbeat, and when it arrived
        for key in (notice, VOICES):
            store.compare_set(key, "", "")  # so that it can be read before it is written
        store.set(f"{PLACE}{rank}", json.dumps([socket.gethostname(), os.getpid()]))
        store.append(self._machine, f"{rank} ")  # type: ignore[attr-defined]

    @property
    def is_voice(self) -> bool:
        return self._neighbors[0] == self._rank

    @property
    def period(self) -> float:
        """Seconds between two calls of `beat`."""
        return max(PERIOD, 2 * len(self._voices) / RATE)

    def beat(self) -> bytes:
        """Sends a heartbeat if this rank is its machine's voice, and returns the content of the notice; else b"".

        A rank that is none asks the store at the start, and again if its voice is gone. On rank 0's machine it asks in
        every period, since the store may be in rank 0's process and end with it.
        """
        voice = self._neighbors[0]
        if voice not in (0, self._rank) and self._is_running(voice):
            return b""
        notice, neighbors, voices = self._store.multi_get([self._notice, self._machine, VOICES])
        self._neighbors = ranks_in(neighbors)
        self._voices = ranks_in(voices) if self.is_voice else []
        if self.is_voice:
            self._beats += 1
            self._store.set(f"{BEAT}{self._rank}", str(self._beats))
            if not self._has_voice:
                self._store.append(VOICES, f"{self._rank} ")  # type: ignore[attr-defined]
                self._has_voice = True
        elif self._has_voice:  # a rank before this one has come
            self._store.set(f"{BEAT}{self._rank}", RESIGNED)
        return bytes(notice)

    def lost(self) -> str | None:
        """Returns a line about a rank that is gone, or None. Only rank 0 detects lost machines."""
        watched = self._neighbors if self.is_voice else self._neighbors[:1]
        for rank in watched:
            if rank != self._rank and not self._is_running(rank):
                return f"{self.name(rank)} is gone: it was killed, or ended without an error message"
        if self._rank == 0 and (missing := self._unregistered()) is not None:
            limit = self._silence
            return f"rank {missing} is gone: it met the others, and nothing came from it for {limit:g} s after that"
        if self._rank == 0 and (silent := self._silent()) is not None:
            limit = self._silence
            return f"{self.name(silent)} is gone: no heartbeat for {limit:g} s; it was killed, or its machine is gone"
        return None

    def name(self, rank: int) -> str:
        host, pid = self._place(rank)
        return f"rank {rank} ({host}, pid {pid})"

    @property
    def _silence(self) -> float:
        return max(SILENCE, 4 * self.period)

    def _place(self, rank: int) -> tuple[str, int]:
        if rank not in self._places:
            host, pid = json.loads(self._store.get(f"{PLACE}{rank}"))
            self._places[rank] = (host, pid)
        return self._places[rank]

    def _is_running(self, rank: int) -> bool:
        return is_running(self._place(rank)[1])

    def _unregistered(self) -> int | None:
        """Returns a rank that has not registered for long, because its machine was lost at once, if there is one."""
        if self._missing and self._store.check([f"{PLACE}{rank}" for rank in self._missing]):
            self._missing.clear()
        if not self._missing or time.monotonic() - self._started < self._silence:
            return None
        return next((rank for rank in sorted(self._missing) if not self._store.check([f"{PLACE}{rank}"])), None)

    def _silent(self) -> int | None:
        """Returns a voice whose heartbeat has not changed for long, if there is one."""
        voices = [rank for rank in self._voices if rank != self._rank]
        beats = self._store.multi_get([f"{BEAT}{rank}" for rank in voices]) if voices else []
        now = time.monotonic()
        for rank, beat in zip(voices, map(bytes, beats)):
            last, since = self._last_beats.setdefault(rank, (beat, now))
            if beat != last:
                self._last_beats[rank] = (beat, now)
            elif beat != RESIGNED.encode() and now - since > self._silence:
                return rank
        return None


def ranks_in(text: bytes) -> list[int]:
    """Returns the numbers in a list that ranks have appended themselves to, in order."""
    return sorted({int(word) for word in bytes(text).split()})


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
