"""What this machine is and what it can do at best: the numbers that all others are compared with."""

import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.on_gpu.scale import Scale
from benchmarks.on_gpu.timing import median_ms, wait
from benchmarks.questions import Row
from benchmarks.unet_step import commit, machine
from gen1_train.system.device import peak_rate
from gen1_train.training.planning.throughput import gemm_rate

PACKAGES = ("triton", "pytorch_lightning", "deepspeed", "diffusers", "hydra-core")
COPIED = 2**31  # bytes, far more than a cache


def machine_rows(scale: Scale) -> Iterator[Row]:
    """Yields the machine, then the rates of matrix products, of copies, and of launches of small kernels."""
    yield {
        "machine": machine(scale.device),
        "torch": torch.__version__,
        **{package: version_of(package) for package in PACKAGES},
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "full_size": not scale.rehearsal,
    }
    rate = gemm_rate(scale.device, torch.bfloat16)
    source = torch.empty(COPIED if scale.gpu else 2**24, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    moved = 2 * len(source)
    yield {
        "gemm_TFLOP_per_s": round(rate / 1e12, 3),
        "peak_TFLOP_per_s": peak_tflops(scale),
        "copy_GB_per_s": round(moved / median_ms(lambda: target.copy_(source), scale) / 1e6),
        "memory_GB": round(torch.cuda.mem_get_info(scale.device)[1] / 1e9, 1) if scale.gpu else None,
        "us_per_launch": round(microseconds_per_launch(scale), 2),
    }


def microseconds_per_launch(scale: Scale, launches: int = 500) -> float:
    """Returns the host's time for a small operation, of which a step of the UNet has some thousands."""
    x = torch.zeros(8, device=scale.device)
    for _ in range(2):  # the first round warms up
        wait(scale.device)
        began = time.perf_counter()
        for _ in range(launches):
            x.add_(1)
        wait(scale.device)
    return 1e6 * (time.perf_counter() - began) / launches


def peak_tflops(scale: Scale) -> float | None:
    """Returns the peak of the data sheet; None for a device that is not in the table."""
    peak = peak_rate(torch.cuda.get_device_name(scale.device)) if scale.gpu else None
    return None if peak is None else peak / 1e12


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
