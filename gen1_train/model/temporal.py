"""What makes the image UNet a video UNet: a temporal convolution and a temporal transformer block (paper section 3.2).

Both are residual and end in weights that start at zero (ours), so a freshly inflated UNet equals the image UNet frame
by frame, exactly. Folds: frames travel in the batch dimension, (b n) c h w, wherever layers are spatial.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen1_train.model.layers import FeedForward


class TemporalConv(nn.Conv1d):
    """1D convolution over the frames of every pixel, added to its input."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        bn, c, h, w = x.shape  # (b n) c h w; channels last, so that everything here is a view
        clips = x.permute(0, 2, 3, 1).reshape(-1, frames, h * w, c).permute(0, 3, 1, 2)  # b c n (h w)
        # as a (k, 1) convolution of the map of frames and pixels: conv1d over (b h w) c n is half as fast
        mixed = F.conv2d(clips, self.weight.unsqueeze(-1), self.bias, padding=(self.kernel_size[0] // 2, 0))
        return x + mixed.permute(0, 2, 3, 1).reshape(bn, h, w, c).permute(0, 3, 1, 2)


class TemporalAttention(nn.Module):
    """Self-attention among the frames of every token."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, n, s, c = x.shape
        # a strided view, no permuted copy: b n (s heads) d -> b (s heads) n d
        q, k, v = (f(x).view(b, n, s * self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, s, c))


class TemporalTransformerBlock(nn.Module):
    """Attention among frames with learnable encodings of the frame index, then a feed-forward layer."""

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
