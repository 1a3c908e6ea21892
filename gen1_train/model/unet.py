"""SpatioTemporalUNet: Stable Diffusion's UNet with temporal layers (paper section 3.2), leaf to root.

A temporal convolution follows each spatial convolution of a residual block, and a temporal transformer block each
spatial one. Images skip them. Spatial parameters have the names of diffusers' UNet2DConditionModel. This module needs
only torch.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gen1_train.errors import UserError, check_choice, check_positive, check_size
from gen1_train.model.group_norm import KERNELS, GroupNorm
from gen1_train.model.layers import (
    Downsample,
    TimeEmbedding,
    TokenConv,
    TransformerBlock,
    Upsample,
    timestep_embedding,
)
from gen1_train.model.temporal import TemporalConv, TemporalTransformerBlock

MEMORY_FORMAT = torch.channels_last  # of all maps in the UNet; every format gives the same numbers


@dataclass
class UNetConfig:
    """The defaults are Stable Diffusion 1.x, inflated."""

    in_channels: int = 4  # 4 (z_t); from stage 4 on 12: + 4 (encoded structure) + 4 (embedding of t_s)
    out_channels: int = 4
    channels: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])  # of each resolution, finest first
    attention: list[bool] = field(default_factory=lambda: [True, True, True, False])  # transformers at each resolution
    heads: list[int] = field(default_factory=lambda: [8, 8, 8, 8])  # attention heads at each resolution
    layers: int = 2  # residual blocks per resolution on the way down; one more on the way up
    groups: int = 32  # of every group norm
    context_dim: int = 768  # width of the content tokens in cross-attention
    content_dim: int = 768  # width of the content embedding; projected to context_dim if it differs
    linear_projection: bool = False  # transformers begin and end with linear layers (SD 2.x), not 1x1 convolutions
    temporal: bool = True  # has temporal layers: from stage 3 on
    temporal_kernel: int = 3  # frames; ours
    temporal_expansion: int = 1  # width inside the temporal feed-forward layers, in channels; ours
    temporal_head_width: int = 64  # channels of a temporal attention head; ours
    max_frames: int = 8  # length of the learnable frame positions
    checkpointing: list[bool] = field(
        default_factory=list
    )  # resolutions whose layers are recomputed in the backward pass
    kernels: str = "auto"  # on GPUs: torch, triton, or auto: our Triton kernels if they are right and faster

    def check(self) -> None:
        """Raises UserError for a UNet that cannot be built, or that cannot take a clip."""
        check_size(model__channels=self.channels, model__heads=self.heads, model__layers=[self.layers])
        if not self.channels or any(size < 1 for size in (*self.channels, *self.heads)):
            raise UserError(f"model.channels={self.channels}, model.heads={self.heads}: all must be 1 or more")
        if self.channels[0] % 2:
            raise UserError(f"model.channels={self.channels}: the first must be even, half sines and half cosines of t")
        for name in ("out_channels", "layers", "groups", "context_dim", "content_dim", "max_frames"):
            check_positive(**{f"model__{name}": getattr(self, name)})
        if self.temporal_kernel < 1 or self.temporal_kernel % 2 == 0:
            raise UserError(
                f"model.temporal_kernel={self.temporal_kernel} must be odd, or a clip would come out longer: give 1, 3 "
                "or 5"
            )
        for name in ("attention", "heads"):
            values = getattr(self, name)
            if len(values) != len(self.channels):
                raise UserError(f"model.{name}={values}: give one value for each of model.channels={self.channels}")
        if self.checkpointing and len(self.checkpointing) != len(self.channels):
            raise UserError(
                f"model.checkpointing={self.checkpointing}: give true or false for each of "
                f"model.channels={self.channels}, or []"
            )
        check_choice("model.kernels", self.kernels, KERNELS)
        if self.temporal_head_width < 1 or self.temporal_expansion < 1:
            raise UserError("model.temporal_head_width and model.temporal_expansion must be 1 or more")
        if any(width % heads for width, heads in zip(self.channels, self.heads)):
            raise UserError(f"model.heads={self.heads} must divide model.channels={self.channels}")
        if any(width % temporal_heads(width, self) for width in self.channels):
            raise UserError(
                f"model.temporal_head_width={self.temporal_head_width} does not divide model.channels={self.channels} "
                "into equal heads"
            )
        if any(width % self.groups for width in self.channels):
            raise UserError(f"model.groups={self.groups} must divide model.channels={self.channels}")


def temporal_heads(channels: int, config: UNetConfig) -> int:
    """Returns the number of heads of temporal attention in a layer with this many channels."""
    return max(1, channels // config.temporal_head_width)


class ResidualBlock(nn.Module):
    def __init__(self, config: UNetConfig, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.groups, channels_in, eps=1e-5, silu=True)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.channels[0], channels)
        self.norm2 = GroupNorm(config.groups, channels, eps=1e-5, silu=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        if config.temporal:
            self.temporal_conv1 = TemporalConv(channels, config.temporal_kernel)
            self.temporal_conv2 = TemporalConv(channels, config.temporal_kernel)

    def forward(self, x: Tensor, time: Tensor, frames: int | None) -> Tensor:
        hidden = self.conv1(self.norm1(x))  # (b n) c h w
        if frames:
            hidden = self.temporal_conv1(hidden, frames)
        hidden = hidden + self.time_emb_proj(F.silu(time))[:, :, None, None]
        hidden = self.conv2(self.norm2(hidden))
        if frames:
            hidden = self.temporal_conv2(hidden, frames)
        return self.conv_shortcut(x) + hidden


class SpatioTemporalTransformer(nn.Module):
    """A spatial transformer block over the tokens of a frame, then a temporal block over the frames of a token."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__()
        project = partial(nn.Linear, channels, channels) if config.linear_projection else partial(TokenConv, channels)
        self.norm = GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = project()
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, config.context_dim)])
        if config.temporal:
            temporal = TemporalTransformerBlock(
                channels, temporal_heads(channels, config), config.max_frames, config.temporal_expansion
            )
            self.temporal_transformer_blocks = nn.ModuleList([temporal])
        self.proj_out = project()

    def forward(self, x: Tensor, content: Tensor, frames: int | None) -> Tensor:
        bn, c, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(bn, h * w, c)  # a view: channels last
        tokens = self.transformer_blocks[0](self.proj_in(tokens), content)
        if frames:
            tokens = self.temporal_transformer_blocks[0](tokens, frames)
        return x + self.proj_out(tokens).view(bn, h, w, c).permute(0, 3, 1, 2)


class Block(nn.Module):
    """The layers of one resolution on the way down or up: residual blocks, each with a transformer if configured."""

    def __init__(self, config: UNetConfig, level: int, widths: list[tuple[int, int]]) -> None:
        """`level` counts the resolutions, finest first; `widths` are the channels into and out of each layer."""
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(config, c_in, c) for c_in, c in widths])
        if config.attention[level]:
            heads = config.heads[level]
            self.attentions = nn.ModuleList([SpatioTemporalTransformer(config, c, heads) for _, c in widths])
        self.has_attention = config.attention[level]
        self.checkpointing = bool(config.checkpointing) and config.checkpointing[level]

    def layer(self, i: int, x: Tensor, time: Tensor, content: Tensor, frames: int | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            # nothing in a layer is random
            return checkpoint(self._layer, i, x, time, content, frames, use_reentrant=False, preserve_rng_state=False)
        return self._layer(i, x, time, content, frames)

    def _layer(self, i: int, x: Tensor, time: Tensor, content: Tensor, frames: int | None) -> Tensor:
        x = self.resnets[i](x, time, frames)
        return self.attentions[i](x, content, frames) if self.has_attention else x


class DownBlock(Block):
    def __init__(self, config: UNetConfig, level: int, widths: list[tuple[int, int]], last: bool) -> None:
        super().__init__(config, level, widths)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(widths[-1][1])])

    def forward(self, x: Tensor, time: Tensor, content: Tensor, frames: int | None) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, content, frames)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """The block at the coarsest resolution; it always has a transformer. Too small to be worth checkpointing."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(config, channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatioTemporalTransformer(config, channels, heads)])

    def forward(self, x: Tensor, time: Tensor, content: Tensor, frames: int | None) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time, frames), content, frames)
        return self.resnets[1](x, time, frames)


class UpBlock(Block):
    def __init__(self, config: UNetConfig, level: int, widths: list[tuple[int, int]], last: bool) -> None:
        super().__init__(config, level, widths)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(widths[-1][1])])

    def forward(
        self, x: Tensor, skips: list[Tensor], size: torch.Size, time: Tensor, content: Tensor, frames: int | None
    ) -> Tensor:
        # reads the list without popping: ZeRO-3's hooks pass each module a copy of its arguments
        for i, skip in enumerate(reversed(skips)):
            x = self.layer(i, torch.cat([x, skip], dim=1), time, content, frames)
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x


class SpatioTemporalUNet(nn.Module):
    """The denoiser. `gen1_train.model.pretrained` loads its weights."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        last = len(channels) - 1
        if not len(config.heads) == len(config.attention) == len(channels):
            raise ValueError(f"heads and attention need a value for each of {len(channels)} resolutions")
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], 4 * channels[0])
        if config.content_dim != config.context_dim:
            self.content_projection = nn.Linear(config.content_dim, config.context_dim)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        skips = [channels[0]]
        width = channels[0]
        for i, c in enumerate(channels):
            widths = [(width, c)] + [(c, c)] * (config.layers - 1)
            self.down_blocks.append(DownBlock(config, i, widths, last=i == last))
            skips += [c] * (config.layers + (i != last))
            width = c
        self.mid_block = MidBlock(config, width, config.heads[-1])
        for i, c in reversed(list(enumerate(channels))):
            widths = []
            for _ in range(config.layers + 1):
                widths.append((width + skips.pop(), c))
                width = c
            self.up_blocks.append(UpBlock(config, i, widths, last=i == 0))
        self.conv_norm_out = GroupNorm(config.groups, channels[0], eps=1e-5, silu=True)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor, timesteps: Tensor, content: Tensor, temporal: bool = True) -> Tensor:
        """Latents (b, n, c, h, w), timesteps (b,), content (b, k, d) -> prediction (b, n, c_out, h, w).

        With temporal=False, or without temporal layers, each frame is processed alone: mu_pi in Eq. 8. Otherwise raises
        ValueError for more frames than there are positions.
        """
        b, n = latents.shape[:2]
        frames = n if temporal and self.config.temporal else None
        if frames and frames > self.config.max_frames:
            raise ValueError(f"{n} frames, but this UNet has positions for only {self.config.max_frames}")
        time = timestep_embedding(timesteps, self.config.channels[0]).to(latents.dtype)
        time = self.time_embedding(time).repeat_interleave(n, dim=0)  # (b n) 4c
        if self.config.content_dim != self.config.context_dim:
            content = self.content_projection(content)
        content = content.repeat_interleave(n, dim=0)  # (b n) k d
        # In channels-last format, maps consist of their tokens, and the folds between space and time need no copies.
        x = latents.flatten(0, 1).contiguous(memory_format=MEMORY_FORMAT)  # (b n) c h w
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x, new = down(x, time, content, frames)
            skips += new
        x = self.mid_block(x, time, content, frames)
        for up in self.up_blocks:
            skips, own = skips[: -self.config.layers - 1], skips[-self.config.layers - 1 :]
            size = (skips or own)[-1].shape[-2:]  # that of the next block; the last one has no upsampling
            x = up(x, own, size, time, content, frames)
        x = self.conv_out(self.conv_norm_out(x))
        return x.view(b, n, *x.shape[1:])
