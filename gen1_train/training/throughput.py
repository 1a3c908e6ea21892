"""FLOPs of a training step from the UNet's config, and the rate of this machine that they are held against (MFU).

Convolutions, matrix products and attention, two FLOPs a multiply-add, as torch's FlopCounterMode counts, to the last
FLOP (tests/training/test_throughput.py). Leaf to root as in gen1_train.model.unet; a layer is the list of its products,
in the order in which they are made.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gen1_train.model.unet import UNetConfig


@dataclass(frozen=True)
class Flops:
    spatial: int
    temporal: int  # of temporal convolutions and temporal transformer blocks

    @property
    def total(self) -> int:
        return self.spatial + self.temporal


@dataclass(frozen=True)
class Product:
    """A matrix product, or a convolution as one."""

    flops: int
    gradients: int = 2  # products of the same size going back: one for each factor that needs a gradient
    again: int = 0  # how often it is computed a second time going back
    temporal: bool = False


@dataclass(frozen=True)
class Clip:
    """What goes through the UNet at once."""

    frames: int
    tokens: int  # of content
    temporal: bool  # temporal layers take part


Map = tuple[int, int]  # height, width


def unet_flops(
    config: UNetConfig, height: int, width: int, frames: int, tokens: int = 1, temporal: bool = True
) -> Flops:
    """The forward pass of one clip whose latents are `height` x `width`, with so many content tokens.

    With temporal=False, or in a UNet without temporal layers, each frame goes alone; an image is a clip of one frame.
    """
    return _sum(unet(config, (height, width), Clip(frames, tokens, temporal and config.temporal)), lambda _: 1)


def step_flops(
    config: UNetConfig,
    height: int,
    width: int,
    frames: int,
    tokens: int = 1,
    temporal: bool = True,
    recomputed: bool = False,
) -> Flops:
    """Forward and backward pass of one clip, as `unet_flops`: a little less than three forward passes.

    With `recomputed` also what is computed a second time: the layers under `config.checkpointing`, and the products of
    queries and keys, which the fused kernels of attention do not keep. Utilisation is reckoned without it.
    """
    products = unet(config, (height, width), Clip(frames, tokens, temporal and config.temporal))
    return _sum(products, lambda product: 1 + product.gradients + (product.again if recomputed else 0))


def _sum(products: list[Product], times: Callable[[Product], int]) -> Flops:
    spatial, temporal = (sum(times(p) * p.flops for p in products if p.temporal == kind) for kind in (False, True))
    return Flops(spatial, temporal)


def linear(rows: int, c_in: int, c_out: int, gradients: int = 2) -> list[Product]:
    return [Product(2 * rows * c_in * c_out, gradients)]


def conv(pixels: int, c_in: int, c_out: int, taps: int, gradients: int = 2) -> list[Product]:
    """`pixels` of the output; a tap that falls into the padding counts as any other."""
    return linear(pixels, taps * c_in, c_out, gradients)


def attend(queries: int, keys: int, channels: int) -> list[Product]:
    """`queries` in all, each attending to so many `keys`; it is the same in however many heads."""
    product = Product(2 * queries * keys * channels)
    return [replace(product, again=1), product]


def feed_forward(rows: int, c: int, expansion: int) -> list[Product]:
    return linear(rows, c, 2 * expansion * c) + linear(rows, expansion * c, c)


def temporal_conv(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    return _temporal(conv(clip.frames * pixels, c, c, config.temporal_kernel)) if clip.temporal else []


def temporal_transformer_block(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    rows = clip.frames * pixels
    attention = 3 * linear(rows, c, c) + attend(rows, clip.frames, c) + linear(rows, c, c)
    return _temporal(attention + feed_forward(rows, c, config.temporal_expansion)) if clip.temporal else []


def _temporal(products: list[Product]) -> list[Product]:
    return [replace(product, temporal=True) for product in products]


def cross_attention(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    rows, read = clip.frames * pixels, clip.frames * clip.tokens
    # the content needs a gradient only where it went through weights of ours
    gradients = 1 + (config.content_dim != config.context_dim)
    if clip.tokens == 1:  # Attention.to_one: neither queries nor keys
        return linear(read, config.context_dim, c, gradients) + linear(read, c, c)
    keys_and_values = 2 * linear(read, config.context_dim, c, gradients)
    return linear(rows, c, c) + keys_and_values + attend(rows, clip.tokens, c) + linear(rows, c, c)


def transformer_block(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    rows = clip.frames * pixels
    attention = 3 * linear(rows, c, c) + attend(rows, pixels, c) + linear(rows, c, c)
    return attention + cross_attention(config, clip, pixels, c) + feed_forward(rows, c, expansion=4)


def transformer(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    project = linear(clip.frames * pixels, c, c)
    blocks = transformer_block(config, clip, pixels, c) + temporal_transformer_block(config, clip, pixels, c)
    return project + blocks + project


def residual_block(config: UNetConfig, clip: Clip, pixels: int, c_in: int, c: int) -> list[Product]:
    n = clip.frames
    time = linear(n, 4 * config.channels[0], c)
    return [
        *(conv(n * pixels, c_in, c, 9) + temporal_conv(config, clip, pixels, c) + time),
        *(conv(n * pixels, c, c, 9) + temporal_conv(config, clip, pixels, c)),
        *(conv(n * pixels, c_in, c, 1) if c_in != c else []),
    ]


def block_layer(config: UNetConfig, clip: Clip, level: int, pixels: int, c_in: int, c: int) -> list[Product]:
    products = residual_block(config, clip, pixels, c_in, c)
    if config.attention[level]:
        products += transformer(config, clip, pixels, c)
    if not (config.checkpointing and config.checkpointing[level]):
        return products
    # torch stops computing again before the last product: going back needs its factors and not its result
    return [replace(product, again=product.again + 1) for product in products[:-1]] + products[-1:]


def upsample(clip: Clip, small: Map, size: Map, c: int) -> list[Product]:
    h, w = small
    if size != (2 * h, 2 * w):
        return conv(clip.frames * _pixels(size), c, c, 9)
    return conv(clip.frames * (h + 1) * (w + 1), c, 4 * c, 4)  # UpsamplingConv: four 2x2 kernels, one of each parity


def entry(config: UNetConfig, size: Map, clip: Clip) -> list[Product]:
    """The first convolution, the embedding of the timestep and the content's projection: their inputs are data."""
    c, (c_context, c_content) = config.channels[0], (config.context_dim, config.content_dim)
    return [
        *conv(clip.frames * _pixels(size), config.in_channels, c, 9, gradients=1),
        *(linear(1, c, 4 * c, gradients=1) + linear(1, 4 * c, 4 * c)),
        *(linear(clip.tokens, c_content, c_context, gradients=1) if c_content != c_context else []),
    ]


def unet(config: UNetConfig, size: Map, clip: Clip) -> list[Product]:
    """The forward pass of a clip whose latents are of this size."""
    channels, last, n = config.channels, len(config.channels) - 1, clip.frames
    products = entry(config, size, clip)
    sizes, skips, width = [size], [channels[0]], channels[0]
    for i, c in enumerate(channels):
        for c_in in [width] + [c] * (config.layers - 1):
            products += block_layer(config, clip, i, _pixels(sizes[i]), c_in, c)
        if i != last:
            sizes.append(_half(sizes[i]))
            products += conv(n * _pixels(sizes[i + 1]), c, c, 9)  # Downsample
        skips += [c] * (config.layers + (i != last))
        width = c
    middle = residual_block(config, clip, _pixels(sizes[last]), width, width)
    products += middle + transformer(config, clip, _pixels(sizes[last]), width) + middle
    for i, c in reversed(list(enumerate(channels))):
        for _ in range(config.layers + 1):
            products += block_layer(config, clip, i, _pixels(sizes[i]), width + skips.pop(), c)
            width = c
        if i != 0:
            products += upsample(clip, sizes[i], sizes[i - 1], c)
    return products + conv(n * _pixels(size), channels[0], config.out_channels, 9)


def _pixels(size: Map) -> int:
    return size[0] * size[1]


def _half(size: Map) -> Map:
    """Of a 3x3 convolution with stride 2 and padding 1: odd sizes are rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def gemm_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on this device, measured: the best of five, after one to warm up.

    Ours, in place of a table of peak rates: it holds for any machine, and for a CPU process it is that of its own
    threads. On a GPU float32 runs as torch is set, by default without TF32, which convolutions do use.
    """
    device = torch.device(device)
    n, times = (8192, 8) if device.type == "cuda" else (1024, 1)
    generator = torch.Generator(device).manual_seed(0)  # not torch's own: a run draws from that
    a, b = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    made = torch.empty_like(a)

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b, out=made)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds()
    return times * 2 * n**3 / min(seconds() for _ in range(5))
