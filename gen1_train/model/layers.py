"""The spatial layers of a Stable Diffusion UNet, with the parameter names of diffusers' UNet2DConditionModel."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU, heads with fewer channels are padded with zeros. This changes no value, but the attention kernel is 1.6
# times as slow with 8 channels as with 16 (benchmarks/RESULTS.md).
MIN_HEAD_WIDTH = 16


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Returns sinusoids (b, width) of timesteps (b,), cosines first as in Stable Diffusion."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Maps the sinusoids of the timestep to the vector that every residual block receives."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention over heads (b, heads, s, d)."""
    d = q.shape[-1]
    if d >= MIN_HEAD_WIDTH or q.device.type != "cpu":
        return fused_attention(q, k, v)
    q, k, v = (F.pad(x, (0, MIN_HEAD_WIDTH - d)) for x in (q, k, v))
    return fused_attention(q, k, v, d**-0.5)[..., :d]


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """torch's attention over (b, heads, s, d). On a CPU, half precision has its backward pass in float32.

    Not in compiled layers: the compiler does not take a backward pass that calls autograd.
    """
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu" and is_half and q.requires_grad and not torch.compiler.is_compiling():
        return _BackwardInFloat32.apply(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class _BackwardInFloat32(torch.autograd.Function):
    """Attention of half precision. On CPUs, torch's backward pass is eight times as slow as the one in float32.

    The forward pass is torch's, so that training and inference give the same bits. It saves only its inputs.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = (x.float().requires_grad_() for x in ctx.saved_tensors)
        with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(q, k, v, scale=ctx.scale)
        gradients = torch.autograd.grad(mixed, (q, k, v), gradient.float())
        return (*(each.to(gradient.dtype) for each in gradients), None)


class Attention(nn.Module):
    """Multi-head attention of tokens (b, s, c) to themselves or to a context (b, k, d)."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(context)), self._split(self.to_v(context))
        return self.to_out[0](attend(q, k, v).transpose(1, 2).reshape(x.shape))

    def to_single_token(self, token: Tensor) -> Tensor:
        """The output of `forward` for every token if the context is a single token (b, 1, d): (b, 1, c).

        This is exact because a softmax over one key is 1. In the general form the gradients of queries and keys would
        be rounding noise around zero, which Adam would amplify to full steps.
        """
        return self.to_out[0](self.to_v(token))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # b s (heads d) -> b heads s d


class GatedGELU(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return _Gate.apply(self.proj(x))


class _Gate(torch.autograd.Function):
    """(…, 2c) -> (…, c): the first half times gelu of the second. Saves only its input, unlike autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        hidden, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # read once: checkpointing unpacks a tensor only once
        hidden, gate = x.chunk(2, dim=-1)
        to_gate = torch.ops.aten.gelu_backward(gradient * hidden, gate)
        return torch.cat([F.gelu(gate).mul_(gradient), to_gate], dim=-1)


class FeedForward(nn.Module):
    """Gated feed-forward layer whose hidden layer is `expansion` times as wide."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.net = nn.ModuleList([GatedGELU(channels, inner), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention over space, cross-attention to the content, feed-forward."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, expansion=4)

    def forward(self, x: Tensor, content: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        single = content.shape[1] == 1
        x = x + (self.attn2.to_single_token(content) if single else self.attn2(self.norm2(x), content))
        return x + self.ff(self.norm3(x))


class TokenConv(nn.Conv2d):
    """A 1x1 convolution applied to tokens (b, s, c); in channels-last format a map already consists of its tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight.flatten(1), self.bias)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if width <= 2:
            # With columns of zeros, the first of which the padding adds anyway. For bfloat16 maps of one column, oneDNN
            # 3.13 leaves parts of the weight's gradient unwritten; on CPUs with AMX, for maps of up to two columns and
            # at least nine rows, also parts of the result. The step would use uninitialized memory.
            return self.conv(F.pad(x, (0, 3 - width)))[..., :1]
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConv(channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(x, size)


class UpsamplingConv(nn.Conv2d):
    """Resizes a map by nearest neighbor to `size`, that of the next skip connection, then applies a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        _, c, h, w = x.shape
        if size != (2 * h, 2 * w):  # one pixel less if an odd size was halved
            return super().forward(F.interpolate(x, size=size, mode="nearest"))
        # In the doubled map two of three neighbors are the same pixel. An output pixel is thus a 2x2 convolution of the
        # small map, with one of four kernels by its parity: 4/9 of the products, and the doubled map is not saved.
        by_row = _by_parity(self.weight.transpose(2, 3))  # p a o i x
        kernels = _by_parity(by_row).permute(2, 0, 4, 5, 3, 1)  # p q o i a b
        assert self.bias is not None
        y = F.conv2d(x, kernels.reshape(4 * c, c, 2, 2), self.bias.repeat(4), padding=1)
        y = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, c))  # b h+1 w+1 p q c
        rows = [torch.stack([y[:, p : p + h, q : q + w, p, q] for q in (0, 1)], dim=3) for p in (0, 1)]  # b h w q c
        return torch.stack(rows, dim=2).view(-1, 2 * h, 2 * w, c).permute(0, 3, 1, 2)  # b c 2h 2w, channels last


def _by_parity(kernel: Tensor) -> Tensor:
    """(…, 3) -> (2, 2, …): the two taps on the small map, for the even and for the odd pixels of the doubled map."""
    left, center, right = kernel.unbind(-1)
    return torch.stack([torch.stack([left, center + right]), torch.stack([left + center, right])])
