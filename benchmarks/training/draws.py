"""Answers the question `draws` of train.py: what a clip's noise costs, made by the loader or by a counter.

The loader's workers draw from torch's CPU generator and send the numbers. A device could make them instead, with a
counter-based generator whose integers are the same everywhere; here it runs in torch operations, as it would there.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.questions import Row
from gen1_train import keyed

SHAPE = (8, 4, 32, 56)  # the latents of a clip of 8 frames of 448x256
STEP_S = 0.030  # of a clip at full size on a GPU that reaches 300 TFLOP/s, of 8.87 TFLOP
LINK = 25e9  # bytes per second from pinned memory through 16 lanes of PCIe 4.0
MASK = 2**32 - 1


def ask_draws(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    def by_loader() -> Tensor:
        return torch.stack([keyed.normal(SHAPE, 0, 0, 0, purpose) for purpose in ("noise", "posterior")])

    def by_counter() -> Tensor:
        return counted((2, *SHAPE), keyed.key(0, 0, 0))

    calls: dict[str, Callable[[], Tensor]] = {"loader": by_loader, "counter": by_counter}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(20 * arguments.rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    numbers = 2 * math.prod(SHAPE)
    for name, call in calls.items():
        median = statistics.median(seconds[name][1:])
        yield {
            "draws by": name,
            "numbers": numbers,
            "ms": round(1e3 * median, 3),
            "clips_per_s": round(1 / median, 1),
            "workers_for_a_gpu": round(median / STEP_S, 3),
            "mean": round(call().mean().item(), 4),
            "deviation": round(call().std().item(), 4),
        }
    yield {"draws' copy": "pinned", "bytes": 4 * numbers, "predicted_us": round(1e6 * 4 * numbers / LINK, 1)}
    integers = philox(torch.arange(numbers // 4), 0)
    exact = box_muller(integers, torch.float64)
    rounded = box_muller(integers, torch.float32)
    yield {
        "normals from equal integers": "the logarithm, sine and cosine in float32 against float64, rounded",
        "share_of_other_bits": round((rounded != exact.float()).float().mean().item(), 3),
        "largest_difference": float(f"{(rounded - exact).abs().max().item():.2e}"),
    }


def counted(shape: tuple[int, ...], key: int) -> Tensor:
    """Returns normal numbers that are a pure function of their position and the key."""
    return box_muller(philox(torch.arange(math.prod(shape) // 4), key), torch.float32).view(shape)


def philox(counters: Tensor, key: int) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): (n,) -> (4, n), 32 random bits each, in int64."""
    zero = torch.zeros_like(counters)
    a, b, c, d = counters & MASK, counters >> 32, zero, zero
    low, high = key & MASK, key >> 32 & MASK
    for _ in range(10):
        first_high, first = _multiply(0xD2511F53, a)
        second_high, second = _multiply(0xCD9E8D57, c)
        a, b, c, d = second_high ^ b ^ low, second, first_high ^ d ^ high, first
        low, high = low + 0x9E3779B9 & MASK, high + 0xBB67AE85 & MASK
    return torch.stack([a, b, c, d])


def _multiply(factor: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the high and the low 32 bits of a product, without a number above 2^49."""
    upper, lower = values >> 16, values & 0xFFFF
    middle = factor * upper + (factor * lower >> 16)
    return middle >> 16, (middle << 16 | factor * lower & 0xFFFF) & MASK


def box_muller(integers: Tensor, dtype: torch.dtype) -> Tensor:
    """(4, n) of 32 random bits -> (4, n) normal numbers."""
    # 24 bits, so that float32 holds each number and 1 is not reached
    uniform = ((integers >> 8).to(dtype) + 0.5) / 2**24
    radius = (-2 * uniform[:2].log()).sqrt()
    angle = 2 * math.pi * uniform[2:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])
