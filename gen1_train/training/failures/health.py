"""Compares the speed of the ranks before the first step: training runs at the pace of the slowest one.

Each rank measures matrix products, its memory, and the links to its neighbors. A rank exchanges data with one neighbor
before and one behind it, in rings within each machine and across machines, like a ring all-reduce does. All pairs
exchange at the same time, so the time does not grow with the number of ranks. No process group is made.
"""

import logging
import math
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.training.callbacks.agreement import SHOWN
from gen1_train.training.planning.throughput import gemm_rate

HEALTH = ("warn", "stop", "off")
SHARE = 0.7  # of the median: a rank below it is slow; ours
COPIED = {"cuda": 1 << 30, "cpu": 1 << 24}  # bytes of the copy in memory; ours
SENT = {"cuda": 1 << 26, "cpu": 1 << 20}  # bytes of an exchange with a neighbor; ours
REPEATS = 5  # of which the best counts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rates:
    """What a rank measured. NaN: there is no such neighbor."""

    products: float  # FLOP/s of matrix products, in the precision of the run
    memory: float  # bytes/s read and written by a copy
    machine: float = math.nan  # bytes/s sent to, and received from, the better neighbor on the same machine
    network: float = math.nan  # the same, for the neighbors on other machines

    def describe(self) -> str:
        shown = (
            (self.products, 1e12, "TFLOP/s in matrix products"),
            (self.memory, 1e9, "GB/s in memory"),
            (self.machine, 1e9, "GB/s to neighbors on the machine"),
            (self.network, 1e9, "GB/s to neighbors on other machines"),
        )
        return ", ".join(f"{rate / unit:.3g} {what}" for rate, unit, what in shown if not math.isnan(rate))


Measure = Callable[[torch.device, torch.dtype, Sequence[str]], Rates]  # see `measure_rates`


def median_of(ranks: Sequence[Rates]) -> Rates:
    """Returns the median of each rate over the ranks that have measured it."""
    medians = {}
    for field in fields(Rates):
        known = [rate for rank in ranks if not math.isnan(rate := getattr(rank, field.name))]
        medians[field.name] = statistics.median(known) if known else math.nan
    return Rates(**medians)


def slow_ranks(ranks: Sequence[Rates], share: float = SHARE) -> list[int]:
    """Returns the ranks of which a rate is below this share of the median."""
    median = median_of(ranks)

    def is_slow(rank: Rates) -> bool:  # a comparison with NaN is false
        return any(getattr(rank, field.name) < share * getattr(median, field.name) for field in fields(Rates))

    return [number for number, rank in enumerate(ranks) if is_slow(rank)]


class HealthCheck(Callback):
    """Compares the GPUs of a run of several ranks; on CPUs, whose cores the ranks share, it measures nothing."""

    def __init__(self, mode: str) -> None:
        """`mode`: one of HEALTH."""
        self.mode = mode

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the weights are on the device. Raises UserError, see `check_health`."""
        device = trainer.strategy.root_device
        if self.mode != "off" and device.type == "cuda" and trainer.world_size > 1:
            check_health(self.mode, device, torch.float32 if trainer.precision == "32-true" else torch.bfloat16)


def check_health(mode: str, device: torch.device, dtype: torch.dtype, measure: Measure | None = None) -> None:
    """Warns of slow ranks, or raises the same UserError on every rank if the mode is `stop`. A collective."""
    world = torch.distributed.get_world_size()
    machines: list[Any] = [None] * world
    torch.distributed.all_gather_object(machines, socket.gethostname())
    ranks: list[Any] = [None] * world
    torch.distributed.all_gather_object(ranks, (measure or measure_rates)(device, dtype, machines))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    median = median_of(ranks)
    if line := health_line(ranks, machines):
        if mode == "stop":
            raise UserError(f"{line}; exclude its host, or set trainer.health=warn")
        logger.warning(f"{line}; all ranks wait for the slowest one: exclude its host, or set trainer.health=off")
    else:
        logger.info(f"no rank is slower than {SHARE:g} of the median: {median.describe()}")


def health_line(ranks: Sequence[Rates], machines: Sequence[str]) -> str | None:
    """Returns a line that names the slow ranks with their hosts and rates; None if there is none."""
    slow, median = slow_ranks(ranks), median_of(ranks)
    if not slow:
        return None
    named = [f"rank {rank} on {machines[rank]} ({ranks[rank].describe()})" for rank in slow[:SHOWN]]
    more = f" and {len(slow) - SHOWN} more" if len(slow) > SHOWN else ""
    return (
        f"slower than {SHARE:g} of the median of {len(ranks)} ranks: {', '.join(named)}{more}; "
        f"the median: {median.describe()}"
    )


@dataclass(frozen=True)
class Neighbors:
    """The neighbors of a rank in a ring; a rank is alone where there is none."""

    first: int | None  # in the first round of exchanges
    second: int | None  # in the second one


def neighbors(ring: Sequence[int], rank: int) -> Neighbors:
    """Returns the ranks before and behind a rank, in the round in which both of them are free.

    Every rank has a partner in both rounds; in a ring of odd length, one has none in each.
    """
    size, place = len(ring), list(ring).index(rank)
    return Neighbors(_partner(ring, place, 0, size), _partner(ring, place, 1, size))


def _partner(ring: Sequence[int], place: int, start: int, size: int) -> int | None:
    """In a round, the pairs are (start, start + 1), (start + 2, start + 3), …; the last rank pairs with the first."""
    turned = (place - start) % size
    other = turned + 1 if turned % 2 == 0 else turned - 1
    return ring[(other + start) % size] if other < size else None


def rings(machines: Sequence[str], rank: int) -> tuple[list[int], list[int]]:
    """Returns the ranks of this rank's machine, and of each machine the one with the same place, where there is one.

    `machines`: the host of each rank.
    """
    members: dict[str, list[int]] = {}
    for number, machine in enumerate(machines):
        members.setdefault(machine, []).append(number)
    own = members[machines[rank]]
    place = own.index(rank)
    return own, [ranks[place] for ranks in members.values() if len(ranks) > place]


def measure_rates(device: torch.device, dtype: torch.dtype, machines: Sequence[str]) -> Rates:
    """Measures this rank. A collective; it takes about a second on GPUs. `machines`: the host of each rank."""
    rank = torch.distributed.get_rank()
    products, memory = gemm_rate(device, dtype), copy_rate(device)
    links = []
    for ring in rings(machines, rank):
        around = neighbors(ring, rank)
        # a neighbor of a slow rank is only as slow in one of the rounds
        links.append(max(exchange_rate(device, around.first), exchange_rate(device, around.second)))
    return Rates(products, memory, *(link or math.nan for link in links))


def copy_rate(device: torch.device) -> float:
    """Measures the bytes/s that a copy within the device's memory reads and writes: the best of REPEATS."""
    size = COPIED[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(_timed(lambda: target.copy_(source), device) for _ in range(REPEATS + 1))  # the first one warms up
    return 2 * source.nbytes / seconds


def exchange_rate(device: torch.device, partner: int | None) -> float:
    """Measures the bytes/s that this rank and a partner send to each other at the same time: the best of REPEATS.

    Returns 0 without a partner. A collective: all pairs begin together.
    """
    mine = torch.zeros(SENT[device.type], dtype=torch.uint8, device=device)
    other = torch.empty_like(mine)
    torch.distributed.all_reduce(torch.zeros(1, device=device))
    if partner is None or partner == torch.distributed.get_rank():
        return 0.0

    def exchange() -> None:
        operations = [
            torch.distributed.P2POp(torch.distributed.isend, mine, partner),
            torch.distributed.P2POp(torch.distributed.irecv, other, partner),
        ]
        for work in torch.distributed.batch_isend_irecv(operations):
            work.wait()

    return mine.nbytes / min(_timed(exchange, device) for _ in range(REPEATS + 1))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that some work takes on the device."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
