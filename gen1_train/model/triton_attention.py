"""Triton kernels of attention across frames. triton comes with torch on Linux; import this file only if it is there.

A program computes one head of one pixel, whose few frames it holds whole: it reads q, k and v once and keeps no
weights. Offsets of clips have 64 bits, and the grid's first dimension takes 2^31 programs: any number of heads is
computed correctly.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_TILE = 16  # of a matrix product on tensor cores


@triton.jit
def _places(heads, frames, WIDTH: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Returns the offsets of this program's head (frames, channels), and which of them exist."""
    program = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    first = (program // heads).to(tl.int64) * frames * heads * WIDTH + (program % heads) * WIDTH
    offsets = first + rows.to(tl.int64)[:, None] * heads * WIDTH + lanes[None, :]
    return offsets, (rows < frames)[:, None] & (lanes < WIDTH)[None, :]


@triton.jit
def _weights(queries, keys, scale, frames, ROWS: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Returns the attention of each frame to each frame."""
    logits = tl.dot(queries, tl.trans(keys), input_precision="ieee", out_dtype=WIDE) * scale
    logits = tl.where((tl.arange(0, ROWS) < frames)[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    mixed,
    scale,
    heads,
    frames,
    WIDTH: tl.constexpr,  # channels of a head
    ROWS: tl.constexpr,  # a power of two that holds the frames
    LANES: tl.constexpr,  # a power of two that holds the channels
    WIDE: tl.constexpr,  # the dtype of sums
):
    offsets, mask = _places(heads, frames, WIDTH, ROWS, LANES)
    queries = tl.load(q + offsets, mask=mask, other=0)
    keys = tl.load(k + offsets, mask=mask, other=0)
    values = tl.load(v + offsets, mask=mask, other=0)
    weights = _weights(queries, keys, scale, frames, ROWS, WIDE)
    result = tl.dot(weights.to(values.dtype), values, input_precision="ieee", out_dtype=WIDE)
    tl.store(mixed + offsets, result.to(values.dtype), mask=mask)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    gradient,
    q,
    k,
    v,
    to_q,
    to_k,
    to_v,
    scale,
    heads,
    frames,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
):
    offsets, mask = _places(heads, frames, WIDTH, ROWS, LANES)
    queries = tl.load(q + offsets, mask=mask, other=0)
    keys = tl.load(k + offsets, mask=mask, other=0)
    values = tl.load(v + offsets, mask=mask, other=0)
    to_mixed = tl.load(gradient + offsets, mask=mask, other=0)
    weights = _weights(queries, keys, scale, frames, ROWS, WIDE)
    to_weights = tl.dot(to_mixed, tl.trans(values), input_precision="ieee", out_dtype=WIDE)
    to_logits = weights * (to_weights - tl.sum(weights * to_weights, 1)[:, None]) * scale
    to_logits = to_logits.to(values.dtype)
    result = tl.dot(tl.trans(weights.to(values.dtype)), to_mixed, input_precision="ieee", out_dtype=WIDE)
    tl.store(to_v + offsets, result.to(values.dtype), mask=mask)
    result = tl.dot(to_logits, keys, input_precision="ieee", out_dtype=WIDE)
    tl.store(to_q + offsets, result.to(values.dtype), mask=mask)
    result = tl.dot(tl.trans(to_logits), queries, input_precision="ieee", out_dtype=WIDE)
    tl.store(to_k + offsets, result.to(values.dtype), mask=mask)


def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns attention of (b, heads, n, d). All tensors are contiguous as (b, n, heads, d)."""
    mixed = torch.empty_like(q)
    b, heads, n, d = q.shape
    _forward_kernel[(b * heads,)](q, k, v, mixed, d**-0.5, heads, n, **_constants(q))
    return mixed


def backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of q, k and v. All tensors are contiguous as (b, n, heads, d)."""
    to_q = torch.empty_like(q)
    to_k = torch.empty_like(q)
    to_v = torch.empty_like(q)
    b, heads, n, d = q.shape
    _backward_kernel[(b * heads,)](gradient, q, k, v, to_q, to_k, to_v, d**-0.5, heads, n, **_constants(q))
    return to_q, to_k, to_v


def _constants(q: Tensor) -> dict[str, Any]:
    n, d = q.shape[2:]
    rows = max(MIN_TILE, triton.next_power_of_2(n))
    lanes = max(MIN_TILE, triton.next_power_of_2(d))
    wide = tl.float64 if q.dtype == torch.float64 else tl.float32
    constants = {"WIDTH": d, "ROWS": rows, "LANES": lanes, "WIDE": wide}
    # a warp for each 16 frames; fused multiply-add is the default, of which Triton 3.9 warns
    return {**constants, "num_warps": rows // MIN_TILE, "enable_fp_fusion": True}
