"""The GPUs that a plan is held against: those of this machine, or those that the config names."""

import subprocess
from dataclasses import dataclass, field

GIBI = 2**30
CARDS = (24, 40, 48, 80, 141)  # GiB of GPUs that are common
MARGIN = 1.1  # how far a plan may be from what is measured


@dataclass
class PlanConfig:
    """What plan_only=true reckons with."""

    gigabytes: float | None = None  # memory of one GPU, in GiB; null: of this machine's GPUs, if it has any
    tflops: float | None = None  # peak bf16 TFLOP/s of one GPU; not asked for once the run has a metrics.csv
    mfu: float = 0.3  # share of it that training reaches; ours
    buckets: list[str] = field(default_factory=list)  # WIDTHxHEIGHT in pixels, for a plan without data.root


def gpu_bytes() -> int | None:
    """Memory of one of this machine's GPUs, if all have the same; without touching any of them."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        sizes = {int(line) for line in done.stdout.split()} if done.returncode == 0 else set()
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return sizes.pop() * 2**20 if len(sizes) == 1 else None


def fits(planned: int, memory: float) -> bool:
    """A plan surely fits; one that is larger than the memory by more than the margin surely does not."""
    return planned * MARGIN <= memory


def smallest_card(planned: int) -> int | None:
    """GiB of the smallest of the common cards that a plan surely fits."""
    return next((card for card in CARDS if fits(planned, card * GIBI)), None)
