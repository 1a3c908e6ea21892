"""The layers that make the image UNet a video UNet: temporal convolution and transformer block (paper section 3.2).

Both are residual and end in weights that start at zero (ours), so that a newly inflated UNet equals the image UNet
frame by frame, exactly. In spatial layers the frames are folded into the batch dimension: (b n) c h w.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen1_train.model.layers import FeedForward, fused_attention

# On a GPU, clips up to this length are attended to by explicit products (ours, by arithmetic). Fused kernels pad clips
# to tiles of 64 or 128 frames, and win again where the weights between all frames are as large as the heads.
MAX_EXPLICIT_FRAMES = 32
MAX_ELEMENTS = 2**26  # in a float32 temporary of the explicit form, which is 256 MiB; ours
MAX_HEADS = 2**16 - 1  # of all clips, in one call: where CUDA's grids end, and SDPA fails (pytorch issue 146704)


class TemporalConv(nn.Conv1d):
    """1D convolution over the frames of every pixel, added to its input."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        bn, c, h, w = x.shape  # (b n) c h w; channels last, so that everything here is a view
        clips = x.permute(0, 2, 3, 1).reshape(-1, frames, h * w, c).permute(0, 3, 1, 2)  # b c n (h w)
        # a (k, 1) convolution over the map of frames and pixels; conv1d over (b h w) c n is half as fast
        mixed = F.conv2d(clips, self.weight.unsqueeze(-1), self.bias, padding=(self.kernel_size[0] // 2, 0))
        return x + mixed.permute(0, 2, 3, 1).reshape(bn, h, w, c).permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """Self-attention across the frames of every token."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.triton = False  # see kernels.choose
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, n, s, c = x.shape
        # a strided view, without a permuted copy: b n (s heads) d -> b (s heads) n d
        q, k, v = (f(x).view(b, n, s * self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out(attend_frames(q, k, v, self.triton).transpose(1, 2).reshape(b, n, s, c))


def attend_frames(q: Tensor, k: Tensor, v: Tensor, triton: bool = False) -> Tensor:
    """Scaled dot-product attention across the frames n of (b, heads, n, d), where pixels count as heads, too.

    It is for any number of heads, in the layout of q: contiguous as (b, n, heads, d).
    """
    if not on_gpu(q):
        return fused_attention(q, k, v)
    if q.shape[2] <= MAX_EXPLICIT_FRAMES:
        return ExplicitAttention.apply(q, k, v, triton)
    parts = [F.scaled_dot_product_attention(q[:, i], k[:, i], v[:, i]) for i in _parts(q)]
    return parts[0] if len(parts) == 1 else torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2)


def on_gpu(x: Tensor) -> bool:
    return x.device.type not in ("cpu", "meta")


class ExplicitAttention(torch.autograd.Function):
    """Attention of (b, heads, n, d) with few frames n. It saves only its inputs.

    Without Triton's kernels it consists of plain products in float32, which a compiler fuses, of a part of the heads at
    a time, so that temporaries stay small.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, triton: bool = False) -> Tensor:
        ctx.triton = triton
        if triton:
            from gen1_train.model import triton_attention  # here, because triton is optional

            q, k, v = (_frames_first(x) for x in (q, k, v))
            ctx.save_for_backward(q, k, v)
            return triton_attention.forward(q, k, v)
        ctx.save_for_backward(q, k, v)
        mixed = _empty_like_frames(q)
        with torch.autocast(q.device.type, enabled=False):
            for i in _parts(q):
                mixed[:, i] = _weights(_wide(q[:, i]), _wide(k[:, i])) @ _wide(v[:, i])
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors  # read once: checkpointing unpacks a tensor only once
        if ctx.triton:
            from gen1_train.model import triton_attention

            return (*triton_attention.backward(_frames_first(gradient), q, k, v), None)
        to_q, to_k, to_v = (_empty_like_frames(x) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            for i in _parts(q):
                part_q, part_k, part_v, part = (_wide(x[:, i]) for x in (q, k, v, gradient))
                weights = _weights(part_q, part_k)
                to_v[:, i] = weights.mT @ part
                to_weights = part @ part_v.mT
                to_logits = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True))
                to_logits = to_logits * q.shape[-1] ** -0.5
                to_q[:, i] = to_logits @ part_k
                to_k[:, i] = to_logits.mT @ part_q
        return to_q, to_k, to_v, None


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)


def _wide(x: Tensor) -> Tensor:
    """Returns a contiguous copy in float32, or in float64 if x has that."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(wide, memory_format=torch.contiguous_format).contiguous()


def _frames_first(x: Tensor) -> Tensor:
    """Returns (b, heads, n, d), contiguous as (b, n, heads, d): a copy only if it is not yet."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _empty_like_frames(x: Tensor) -> Tensor:
    """Returns (b, heads, n, d), contiguous as (b, n, heads, d)."""
    b, heads, n, d = x.shape
    return x.new_empty(b, n, heads, d).transpose(1, 2)


def _parts(q: Tensor) -> Iterator[slice]:
    """Yields slices of the heads of q (b, heads, n, d) whose products stay below MAX_ELEMENTS and MAX_HEADS."""
    b, heads, n, d = q.shape
    size = max(1, min(MAX_HEADS, MAX_ELEMENTS // (n * max(n, d))) // b)
    return (slice(i, i + size) for i in range(0, heads, size))


class TemporalTransformerBlock(nn.Module):
    """Attention across frames with learnable encodings of the frame index, then a feed-forward layer."""

    def __init__(self, channels: int, heads: int, max_frames: int, expansion: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(max_frames, channels) * 0.02)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = TemporalAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, expansion)
        nn.init.zeros_(self.ff.net[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.ff.net[2].bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        x = tokens.view(-1, frames, *tokens.shape[1:])  # b n s c
        x = x + self.attn(self.norm1(x) + self.positions[:frames, None])
        x = x + self.ff(self.norm2(x))
        return x.view(tokens.shape)  # (b n) s c
