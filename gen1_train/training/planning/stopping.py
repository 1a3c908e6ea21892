"""The grace that a run needs: how long it takes from the signal that asks it to stop to a whole checkpoint.

The ranks agree on a step, the next one or the one after it; copy the state to buffers, while training waits; and write
and hash it. The speed of the disk is measured by a file that has no name and is gone afterwards.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from gen1_train.training.preflight import nearest_folder

PROBE = 2**28  # bytes; ours
BLOCK = 2**24  # bytes that are written at once
STEPS = 2  # at most, until all ranks stop
COPIED = 2e9  # bytes/s that a rank copies to its buffers, the lowest rate that was measured (benchmarks/RESULTS.md)
MARGIN = 1.5  # ours: other jobs use the disk, too
SETTLING = 15.0  # seconds for processes to notice and to end; ours
SCRIPTS = 300  # seconds in the --signal of slurm/stage*.sh
KILL_WAIT = 30  # Slurm's seconds between SIGTERM and SIGKILL unless GraceTime or KillWait say otherwise


@dataclass(frozen=True)
class Rates:
    """Bytes/s of one process."""

    written: float  # to the disk, synced
    hashed: float  # by SHA-256, as every rank does with its part


def measure(folder: Path, size: int = PROBE) -> Rates:
    """Measures the disk of a folder, which need not exist yet. Raises OSError where nothing can be written."""
    block, blocks = os.urandom(min(size, BLOCK)), ceil(size / BLOCK)
    with tempfile.TemporaryFile(dir=nearest_folder(folder), buffering=0) as file:
        began = time.perf_counter()
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter()
    digest = hashlib.sha256()
    hashing = time.perf_counter()
    for _ in range(blocks):
        digest.update(block)
    total = blocks * len(block)
    return Rates(total / (written - began), total / (time.perf_counter() - hashing))


def saving_seconds(size: int, world: int, rates: Rates) -> float:
    """Returns the seconds until a checkpoint is whole. Ranks copy and hash their parts at once, and share the disk."""
    part = size / world
    return part / COPIED + part / rates.hashed + size / rates.written


def grace(saving: float, step: float) -> int:
    """Returns the seconds to allow, with a margin, in tens."""
    return 10 * ceil((MARGIN * (STEPS * step + saving) + SETTLING) / 10)


def grace_lines(size: int, world: int, step: float | None, run: Path) -> Iterator[str]:
    """Yields what a stop takes. `size`: bytes of a checkpoint; `step`: seconds of a step, if they are known."""
    try:
        rates = measure(run, min(size, PROBE))
    except OSError as error:
        yield f"grace: not known, because nothing can be written for {run} ({error.strerror or error})"
        return
    saving = saving_seconds(size, world, rates)
    disk = f"{rates.written / 1e9:.2g} GB/s, measured here with {min(size, PROBE) / 1e9:.2g} GB"
    stop = f"grace: a checkpoint takes {saving:.3g} s (the disk: {disk})"
    if step is None:
        yield f"{stop}, after up to {STEPS} steps, whose time is not known yet"
        return
    needed = grace(saving, step)
    yield f"{stop}, after up to {STEPS} steps of {step:.3g} s: allow {needed} s, with a margin"
    if needed > SCRIPTS:
        yield f"  at the time limit: sbatch --signal=B:USR1@{needed} slurm/…, instead of the {SCRIPTS} s of the scripts"
    if needed > KILL_WAIT:
        yield f"  at a preemption: GraceTime={needed} of the partition, instead of Slurm's {KILL_WAIT} s (KillWait)"
