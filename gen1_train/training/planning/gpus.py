"""The GPUs that a plan is compared with: those of this machine, or those that the config describes."""

import subprocess
from dataclasses import dataclass, field

from gen1_train.errors import check_positive

GIBI = 2**30
CARDS = (24, 40, 48, 80, 141)  # GiB of common GPUs
MARGIN = 1.1  # tolerance between plan and measurement, as a factor


@dataclass
class PlanConfig:
    """The inputs of plan_only=true."""

    gigabytes: float | None = None  # memory of one GPU, in GiB; null: that of this machine's GPUs, if it has any
    tflops: float | None = None  # peak bf16 TFLOP/s of one GPU; not used once the run has a metrics.csv
    mfu: float = 0.3  # share of plan.tflops that training reaches; ours
    buckets: list[str] = field(default_factory=list)  # WIDTHxHEIGHT in pixels, for a plan without data.root

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        check_positive(plan__gigabytes=self.gigabytes, plan__tflops=self.tflops, plan__mfu=self.mfu)


def gpu_bytes() -> int | None:
    """Returns the memory of one of this machine's GPUs if all have the same, without initializing any of them."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=30)
        sizes = {int(line) for line in result.stdout.split()} if result.returncode == 0 else set()
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return sizes.pop() * 2**20 if len(sizes) == 1 else None


def fits(planned: int, memory: float) -> bool:
    """Whether a plan fits a memory even if it is too low by the margin."""
    return planned * MARGIN <= memory


def smallest_card(planned: int) -> int | None:
    """Returns the size in GiB of the smallest common GPU that a plan fits, see `fits`."""
    return next((card for card in CARDS if fits(planned, card * GIBI)), None)
