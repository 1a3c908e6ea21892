"""The GPUs that a plan is compared with: those of this machine, or those that the config describes."""

import subprocess
from dataclasses import dataclass, field

from gen1_train.errors import check_choice, check_positive
from gen1_train.system.device import PEAKS, peak_rate

GIBI = 2**30
CARDS = (24, 40, 48, 80, 141)  # GiB of common GPUs
MARGIN = 1.1  # tolerance between plan and measurement, as a factor


@dataclass
class PlanConfig:
    """What plan_only=true, and the choice by strategy=auto, assume about the GPUs."""

    gigabytes: float | None = None  # memory of one GPU, in GiB; null: that of this machine's GPUs, if it has any
    gpu: str | None = None  # A100, H100-SXM, H100-PCIe, H200, B200, MI300X, L40S, RTX-4090; null: this machine's GPU
    tflops: float | None = None  # peak bf16 TFLOP/s of one GPU, null: of plan.gpu; metrics.csv replaces it
    mfu: float = 0.3  # share of plan.tflops that training reaches; ours
    buckets: list[str] = field(default_factory=list)  # WIDTHxHEIGHT in pixels, for a plan without data.root

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        if self.gpu is not None:
            check_choice("plan.gpu", self.gpu, tuple(PEAKS))
        check_positive(plan__gigabytes=self.gigabytes, plan__tflops=self.tflops, plan__mfu=self.mfu)


def gpu_bytes() -> int | None:
    """Returns the memory of one of this machine's GPUs if all have the same, without initializing any of them."""
    size = _queried("memory.total")
    return int(size) * 2**20 if size is not None and size.isdecimal() else None


def peak_tflops(config: PlanConfig) -> tuple[float, str] | None:
    """Returns the peak bf16 TFLOP/s of one GPU and its name, from the config or for this machine's GPUs, or None."""
    if config.tflops is not None:
        return config.tflops, config.gpu or "GPU"
    name = config.gpu or _queried("name")
    rate = None if name is None else peak_rate(name)
    return None if name is None or rate is None else (rate / 1e12, name)


def _queried(field: str) -> str | None:
    """Returns what nvidia-smi says about this machine's GPUs if it is the same for all, without initializing any."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = {line.strip() for line in result.stdout.splitlines() if line.strip()} if result.returncode == 0 else set()
    return values.pop() if len(values) == 1 else None


def gpu_memory(config: PlanConfig) -> float | None:
    """Returns the bytes of one GPU: those that the config gives, or those of this machine's; None if unknown."""
    return config.gigabytes * GIBI if config.gigabytes is not None else gpu_bytes()


def fits(planned: int, memory: float) -> bool:
    """Whether a plan fits a memory even if it is too low by the margin."""
    return planned * MARGIN <= memory


def smallest_card(planned: int) -> int | None:
    """Returns the size in GiB of the smallest common GPU that a plan fits, see `fits`."""
    return next((card for card in CARDS if fits(planned, card * GIBI)), None)
