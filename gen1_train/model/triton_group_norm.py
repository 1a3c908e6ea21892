"""The Triton kernels of group_norm.py. triton comes with torch on Linux; import this file only if it is installed.

A program computes one group of one sample. In channels-last format, neighboring groups share cache lines, and programs
of neighboring groups run at the same time. The offset of a sample has 64 bits, and samples and groups are in the
grid's first dimension, which takes 2^31 programs: maps of any size are computed correctly.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements that a program holds at once; ours


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    y,
    means,
    rstds,
    pixels,
    groups,
    eps,
    WIDTH: tl.constexpr,  # channels of a group
    LANES: tl.constexpr,  # the next power of two
    ROWS: tl.constexpr,  # pixels that are read at once
    SILU: tl.constexpr,
    WIDE: tl.constexpr,  # the dtype of the computation
):
    program = tl.program_id(0)
    sample = program // groups
    group = program % groups
    lanes = tl.arange(0, LANES)
    rows = tl.arange(0, ROWS)
    used = lanes < WIDTH
    first = sample.to(tl.int64) * pixels * groups * WIDTH + group * WIDTH
    count = tl.full((), 0, WIDE)
    mean = tl.full((), 0, WIDE)
    squares = tl.full((), 0, WIDE)  # sum of squared distances from the mean
    for start in range(0, pixels, ROWS):  # each tile's moments are exact, and are merged by Chan's formula
        mask = ((start + rows) < pixels)[:, None] & used[None, :]
        offsets = first + (start + rows).to(tl.int64)[:, None] * groups * WIDTH + lanes[None, :]
        values = tl.load(x + offsets, mask=mask, other=0).to(WIDE)
        size = (tl.minimum(pixels - start, ROWS) * WIDTH).to(WIDE)
        center = tl.sum(tl.sum(values, 1), 0) / size
        distances = tl.where(mask, values - center, 0)
        step = center - mean
        squares += tl.sum(tl.sum(distances * distances, 1), 0) + step * step * count * size / (count + size)
        mean += step * size / (count + size)
        count += size
    rstd = 1 / tl.sqrt(squares / count + eps)
    tl.store(means + program, mean)
    tl.store(rstds + program, rstd)
    factors = tl.load(weight + group * WIDTH + lanes, mask=used, other=0).to(WIDE)[None, :]
    terms = tl.load(bias + group * WIDTH + lanes, mask=used, other=0).to(WIDE)[None, :]
    for start in range(0, pixels, ROWS):
        mask = ((start + rows) < pixels)[:, None] & used[None, :]
        offsets = first + (start + rows).to(tl.int64)[:, None] * groups * WIDTH + lanes[None, :]
        values = tl.load(x + offsets, mask=mask, other=0).to(WIDE)
        values = (values - mean) * rstd * factors + terms
        if SILU:
            values = values / (1 + tl.exp(-values))
        tl.store(y + offsets, values.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _through_silu(gradient, y):  # type: ignore[no-untyped-def]
    """Returns the gradient of SiLU's input y."""
    gate = 1 / (1 + tl.exp(-y))
    return gradient * (gate * (1 + y * (1 - gate)))


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    gradient,
    x,
    weight,
    bias,
    means,
    rstds,
    to_x,
    to_weight,  # b c, to be summed over the samples
    to_bias,
    pixels,
    groups,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    sample = program // groups
    group = program % groups
    lanes = tl.arange(0, LANES)
    rows = tl.arange(0, ROWS)
    used = lanes < WIDTH
    first = sample.to(tl.int64) * pixels * groups * WIDTH + group * WIDTH
    mean = tl.load(means + program)
    rstd = tl.load(rstds + program)
    factors = tl.load(weight + group * WIDTH + lanes, mask=used, other=0).to(WIDE)
    terms = tl.load(bias + group * WIDTH + lanes, mask=used, other=0).to(WIDE)
    totals = tl.zeros((LANES,), WIDE)  # sums over the pixels of every channel
    moments = tl.zeros((LANES,), WIDE)
    for start in range(0, pixels, ROWS):
        mask = ((start + rows) < pixels)[:, None] & used[None, :]
        offsets = first + (start + rows).to(tl.int64)[:, None] * groups * WIDTH + lanes[None, :]
        normal = (tl.load(x + offsets, mask=mask, other=0).to(WIDE) - mean) * rstd
        to_y = tl.load(gradient + offsets, mask=mask, other=0).to(WIDE)
        if SILU:
            to_y = _through_silu(to_y, normal * factors[None, :] + terms[None, :])
        totals += tl.sum(to_y, 0)
        moments += tl.sum(to_y * normal, 0)
    channels = sample.to(tl.int64) * groups * WIDTH + group * WIDTH + lanes
    tl.store(to_weight + channels, moments, mask=used)
    tl.store(to_bias + channels, totals, mask=used)
    count = (pixels * WIDTH).to(WIDE)
    shared = tl.sum(totals * factors, 0) / count
    slope = tl.sum(moments * factors, 0) / count
    for start in range(0, pixels, ROWS):
        mask = ((start + rows) < pixels)[:, None] & used[None, :]
        offsets = first + (start + rows).to(tl.int64)[:, None] * groups * WIDTH + lanes[None, :]
        normal = (tl.load(x + offsets, mask=mask, other=0).to(WIDE) - mean) * rstd
        to_y = tl.load(gradient + offsets, mask=mask, other=0).to(WIDE)
        if SILU:
            to_y = _through_silu(to_y, normal * factors[None, :] + terms[None, :])
        values = rstd * (to_y * factors[None, :] - shared - normal * slope)
        tl.store(to_x + offsets, values.to(to_x.dtype.element_ty), mask=mask)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the result for a channels-last map (b, c, h, w), and mean and 1 / deviation (b, g)."""
    y = torch.empty_like(x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (torch.empty(x.shape[0], groups, dtype=wide, device=x.device) for _ in range(2))
    arguments = x, weight, bias, y, mean, rstd
    _forward_kernel[(x.shape[0] * groups,)](*arguments, _pixels(x), groups, eps, **_constants(x, groups, silu))
    return y, mean, rstd


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias; `gradient` and x are channels-last maps (b, c, h, w)."""
    to_x = torch.empty_like(x)
    sums = torch.empty(2, *x.shape[:2], dtype=mean.dtype, device=x.device)  # those of weight and bias, b c
    arguments = gradient, x, weight, bias, mean, rstd, to_x, sums[0], sums[1]
    _backward_kernel[(x.shape[0] * groups,)](*arguments, _pixels(x), groups, **_constants(x, groups, silu))
    to_weight, to_bias = sums.sum(1).to(weight.dtype)
    return to_x, to_weight, to_bias


def _pixels(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def _constants(x: Tensor, groups: int, silu: bool) -> dict[str, Any]:
    width = x.shape[1] // groups
    lanes = triton.next_power_of_2(width)
    rows = min(triton.next_power_of_2(_pixels(x)), max(1, TILE // lanes))
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    constants = {"WIDTH": width, "LANES": lanes, "ROWS": rows, "SILU": silu, "WIDE": wide}
    return {**constants, "enable_fp_fusion": True}  # the default, of which Triton 3.9 warns
