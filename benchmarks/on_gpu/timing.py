"""Clocks for a GPU, which works while the host is ahead of it; on a CPU they measure the wall time."""

import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.scale import Scale
from benchmarks.questions import Row

FLUSHED = 2**28  # bytes that are written before a measurement: more than any GPU's cache
HELD_CYCLES = 4_000_000  # about 2 ms, in which the host launches all of a call while the GPU does nothing
TOP = 8  # operators that a row is made of


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(call: Callable[[], object], scale: Scale) -> float:
    """Returns the median of the GPU's time for a call whose inputs are not in its cache, without the host's launches.

    On a CPU it is the time of a single call.
    """
    if not scale.gpu:
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    for _ in range(2):
        call()
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device=scale.device)
    spans = []
    for _ in range(scale.repeats):
        flush.zero_()
        torch.cuda._sleep(HELD_CYCLES)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        spans.append((begin, end))
    wait(scale.device)
    return statistics.median(begin.elapsed_time(end) for begin, end in spans)


def peak_bytes(call: Callable[[], object], scale: Scale) -> int | None:
    """Returns the most memory that was allocated during a call; None on a CPU."""
    if not scale.gpu:
        return None
    wait(scale.device)
    torch.cuda.reset_peak_memory_stats(scale.device)
    call()
    wait(scale.device)
    return torch.cuda.max_memory_allocated(scale.device)


def step_times(step: Callable[[], object], scale: Scale) -> dict[str, float]:
    """Returns the milliseconds of a step, warmed up: by the wall clock, and until the host has launched all of it.

    The host is ahead of the GPU by about a thousand kernels at most. So where a step takes the GPU longer than the
    host, `host_ms` includes waiting for the GPU; where it is about `wall_ms`, and the GPU was not busy, the GPU waits
    for the host.
    """
    for _ in range(1 if scale.rehearsal else 3):
        step()
    wait(scale.device)
    began = time.perf_counter()
    for _ in range(scale.repeats):
        step()
    wait(scale.device)
    wall = (time.perf_counter() - began) / scale.repeats
    launches = []
    for _ in range(min(3, scale.repeats)):
        began = time.perf_counter()
        step()
        launches.append(time.perf_counter() - began)
        wait(scale.device)
    return {"wall_ms": 1e3 * wall, "host_ms": 1e3 * statistics.median(launches)}


def device_ms(step: Callable[[], object], scale: Scale) -> float | None:
    """Returns the GPU's busy time in a step; None on a CPU."""
    if not scale.gpu:
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        wait(scale.device)
    kernels = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    return round(sum(event.self_device_time_total for event in kernels) / 1e3, 2)


def profiled(step: Callable[[], object], scale: Scale) -> tuple[Row, list[Row]]:
    """Returns the GPU's busy time and its kernels in a step, and the operators that take most of it.

    On a CPU the times are those of the operators themselves, and no kernels are counted.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scale.gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        wait(scale.device)
    events = [event for event in profiler.key_averages() if not event.is_user_annotation]
    operators = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]

    def spent(event: object) -> float:
        return (event.self_device_time_total if scale.gpu else event.self_cpu_time_total) / 1e3  # type: ignore

    top = sorted(operators, key=spent, reverse=True)[:TOP]
    busy = sum(map(spent, kernels)) if scale.gpu else None
    total = {
        "device_ms": None if busy is None else round(busy, 2),
        "kernels": sum(event.count for event in kernels) if scale.gpu else None,
    }
    return total, [{"operator": event.key, "calls": event.count, "ms": round(spent(event), 3)} for event in top]


def release(scale: Scale) -> None:
    """Frees what the last measurement left."""
    gc.collect()
    if scale.gpu:
        torch.cuda.empty_cache()
